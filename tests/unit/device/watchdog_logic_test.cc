#include "worker/device/cuda/watchdog_logic.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Step = WatchdogLogic::Step;

const absl::Time kStart = absl::UnixEpoch();

absl::Time At(double seconds) {
  return kStart + absl::Seconds(seconds);
}

WatchedWork Work(uint64_t microbatch, double limit = 10) {
  return {3, microbatch, absl::Seconds(limit)};
}

class WatchdogLogicTest : public ::testing::Test {
 protected:
  Step Look(double seconds, bool aborted = false) { return logic_.Look(At(seconds), seen_, aborted); }

  WatchdogLogic logic_{2, absl::Seconds(2)};
  std::vector<ShardObservation> seen_{{absl::OkStatus(), "sum 7 of 4 x 64 floats"}, {absl::OkStatus(), ""}};
};

TEST_F(WatchdogLogicTest, WatchesWorkThatEndsInTime) {
  EXPECT_EQ(Look(0), Step::kWatch);
  for (int i = 0; i < 5; ++i) {
    logic_.Begin(0, Work(i), At(9 * i));
    logic_.Begin(1, Work(i), At(9 * i));
    EXPECT_EQ(Look(9 * i + 8.9), Step::kWatch);
    logic_.End(0);
    logic_.End(1);
  }
  EXPECT_EQ(Look(1000), Step::kWatch) << "nothing is open";
  EXPECT_EQ(logic_.verdict(), "");
}

TEST_F(WatchdogLogicTest, NamesWorkThatDoesNotEnd) {
  logic_.Begin(0, Work(41), At(0));
  logic_.Begin(1, Work(41), At(0));
  logic_.End(1);
  EXPECT_EQ(Look(9.9), Step::kWatch);
  EXPECT_EQ(Look(10), Step::kAbort) << "at the limit";
  EXPECT_EQ(logic_.verdict(),
            "stage 3, microbatch 41, shard 0, last collective: sum 7 of 4 x 64 floats: not done "
            "after 10s");
}

TEST_F(WatchdogLogicTest, NamesAllShardsThatAreLate) {
  logic_.Begin(0, Work(41), At(0));
  logic_.Begin(1, Work(41), At(0));
  EXPECT_EQ(Look(10), Step::kAbort);
  EXPECT_THAT(logic_.verdict(),
              AllOf(HasSubstr("shard 0, last collective: sum 7"),
                    HasSubstr("; stage 3, microbatch 41, shard 1, last collective: none: ")));
}

// Each piece of work has its own time, from its own beginning.
TEST_F(WatchdogLogicTest, CountsTheOldestOpenWork) {
  logic_.Begin(0, Work(1), At(0));
  logic_.Begin(0, Work(2), At(5));
  logic_.End(0);
  EXPECT_EQ(Look(12), Step::kWatch);
  EXPECT_EQ(Look(15), Step::kAbort);
  EXPECT_THAT(logic_.verdict(), HasSubstr("microbatch 2"));
}

TEST_F(WatchdogLogicTest, IgnoresAnEndWithoutBegin) {
  logic_.End(0);
  logic_.Begin(0, Work(1), At(0));
  EXPECT_EQ(Look(10), Step::kAbort);
}

TEST_F(WatchdogLogicTest, TakesACommunicatorsErrorAtOnce) {
  logic_.Begin(1, Work(3), At(0));
  seen_[1].communicator = absl::UnavailableError("remote process has left");
  EXPECT_EQ(Look(0.1), Step::kAbort);
  EXPECT_EQ(logic_.verdict(),
            "stage 3, microbatch 3, shard 1, last collective: none: remote process has left");
}

TEST_F(WatchdogLogicTest, TakesAnErrorWithoutOpenWork) {
  seen_[0].communicator = absl::UnavailableError("gone");
  EXPECT_EQ(Look(0), Step::kAbort);
  EXPECT_EQ(logic_.verdict(), "shard 0, last collective: sum 7 of 4 x 64 floats: gone");
}

// What a device says of itself is the cause; communicators and deadlines follow from it.
TEST_F(WatchdogLogicTest, BlamesTheDeviceFirst) {
  logic_.Begin(0, Work(3), At(0));
  seen_[0].communicator = absl::UnavailableError("remote error");
  logic_.Report(1, absl::InternalError("illegal address"));
  logic_.Report(1, absl::InternalError("a later error"));
  EXPECT_EQ(Look(100), Step::kAbort);
  EXPECT_THAT(logic_.verdict(),
              AllOf(HasSubstr("shard 1"), HasSubstr("illegal address"), Not(HasSubstr("later")),
                    Not(HasSubstr("remote error")), Not(HasSubstr("not done"))));
}

TEST_F(WatchdogLogicTest, EndsWhenAbortsHaveReturned) {
  logic_.Report(0, absl::InternalError("lost"));
  EXPECT_EQ(Look(0, /*aborted=*/true), Step::kAbort) << "aborts are asked for first";
  EXPECT_EQ(Look(0.5), Step::kAbort);
  EXPECT_EQ(Look(0.6, /*aborted=*/true), Step::kEnd);
}

TEST_F(WatchdogLogicTest, EndsWhenAbortsHang) {
  logic_.Report(0, absl::InternalError("lost"));
  EXPECT_EQ(Look(5), Step::kAbort);
  EXPECT_EQ(Look(6.99), Step::kAbort);
  EXPECT_EQ(Look(7), Step::kEnd);
}

// What happens to be seen later does not replace the verdict, nor begin the time anew.
TEST_F(WatchdogLogicTest, KeepsItsVerdict) {
  logic_.Report(1, absl::InternalError("lost"));
  EXPECT_EQ(Look(0), Step::kAbort);
  const std::string verdict = logic_.verdict();
  seen_[0].communicator = absl::UnavailableError("later");
  logic_.Report(0, absl::InternalError("later"));
  EXPECT_EQ(Look(1), Step::kAbort);
  EXPECT_EQ(logic_.Look(At(2), {}, false), Step::kEnd);
  EXPECT_EQ(logic_.verdict(), verdict);
}

}  // namespace
}  // namespace millrace
