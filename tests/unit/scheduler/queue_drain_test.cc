#include "coordinator/scheduler/queue_drain.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

absl::Time At(double seconds) {
  return absl::UnixEpoch() + absl::Seconds(seconds);
}

TEST(QueueDrainTest, DividesWhatWaitsByTheRateOfAdmissions) {
  QueueDrain drain;
  drain.OnFirstQueued(At(10));
  for (int i = 1; i <= 20; ++i) drain.OnAdmitted(At(10 + i * 0.5));
  EXPECT_EQ(drain.RetryAfter(30, At(20)), absl::Seconds(15));
  EXPECT_EQ(drain.RetryAfter(30, At(30)), absl::Seconds(30)) << "nothing was admitted for 10 s";
}

TEST(QueueDrainTest, ForgetsTheTimeWhenNobodyWaited) {
  QueueDrain drain;
  drain.OnFirstQueued(At(10));
  drain.OnAdmitted(At(11));
  drain.OnFirstQueued(At(1000));
  drain.OnAdmitted(At(1000.5));
  EXPECT_EQ(drain.RetryAfter(4, At(1000.5)), absl::Seconds(2));
}

TEST(QueueDrainTest, LooksAtTheLastAdmissionsOnly) {
  QueueDrain drain;
  drain.OnFirstQueued(At(0));
  for (int i = 1; i <= 100; ++i) drain.OnAdmitted(At(i * 10));
  for (int i = 1; i <= 65; ++i) drain.OnAdmitted(At(1000 + i));
  EXPECT_EQ(drain.RetryAfter(8, At(1065)), absl::Seconds(8));
}

TEST(QueueDrainTest, StaysWithinItsBounds) {
  QueueDrain drain;
  EXPECT_EQ(drain.RetryAfter(1000, At(0)), QueueDrain::kLeastPause);
  drain.OnFirstQueued(At(0));
  EXPECT_EQ(drain.RetryAfter(1000, At(0)), QueueDrain::kLeastPause);
  EXPECT_EQ(drain.RetryAfter(1000, At(1)), QueueDrain::kLongestPause);
  EXPECT_EQ(drain.RetryAfter(2, At(1)), absl::Seconds(2)) << "as if one were admitted now";
  EXPECT_EQ(drain.RetryAfter(0, At(1)), QueueDrain::kLeastPause);
}

}  // namespace
}  // namespace millrace
