#include "worker/control/coordinator_lease.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr absl::Duration kStep = absl::Seconds(1);

absl::Time At(double seconds) {
  return absl::UnixEpoch() + absl::Seconds(seconds);
}

TEST(SilenceMeterTest, AddsUpUntilSomethingIsHeard) {
  SilenceMeter meter(kStep, At(0));
  EXPECT_EQ(meter.Tick(false, At(1)), absl::Seconds(1));
  EXPECT_EQ(meter.Tick(false, At(2.5)), absl::Seconds(2.5));
  EXPECT_EQ(meter.Tick(true, At(3.5)), absl::ZeroDuration());
  EXPECT_EQ(meter.Tick(false, At(4)), absl::Seconds(0.5));
}

TEST(SilenceMeterTest, DoesNotCountTheTimeThisProcessWasStopped) {
  SilenceMeter meter(kStep, At(0));
  meter.Tick(true, At(1));
  EXPECT_EQ(meter.Tick(false, At(1000)), 2 * kStep);
  EXPECT_EQ(meter.Tick(false, At(999)), 2 * kStep);  // no clock goes back, but none may end a worker either
}

TEST(CoordinatorLeaseTest, EndsOnceAndOnlyInSilence) {
  BoundedQueue<int> over(10);
  CoordinatorLease lease(absl::Milliseconds(200), [&] { over.Push(1); });
  // As long as somebody speaks; far longer than the time-out, in which it would have ended.
  const absl::Time until = Clock::Steady().Now() + absl::Milliseconds(600);
  while (Clock::Steady().Now() < until) lease.Heard();
  EXPECT_EQ(over.size(), 0u);
  EXPECT_TRUE(over.Pop(absl::Seconds(60)).has_value());
  EXPECT_FALSE(over.Pop(absl::Milliseconds(1)).has_value());
}

TEST(CoordinatorLeaseTest, GoesWithoutACall) {
  CoordinatorLease lease(absl::Hours(1), [] { FAIL(); });
}

}  // namespace
}  // namespace millrace
