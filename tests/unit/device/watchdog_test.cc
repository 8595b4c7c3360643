#include "worker/device/cuda/watchdog.h"

#include <atomic>
#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "common/options.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

class FakeCollectives final : public WatchedCollectives {
 public:
  absl::Status AsyncError(uint32_t shard) override {
    if (shard == 1 && fails) return absl::UnavailableError("remote process has left");
    return absl::OkStatus();
  }
  std::string LastEnqueued(uint32_t) override { return "sum 5 of 1 x 8 floats"; }
  void Abort(uint32_t shard) override {
    aborted |= 1u << shard;
    if (shard == 1 && hangs) absl::Notification().WaitForNotification();
  }

  std::atomic<bool> fails = false;
  std::atomic<bool> hangs = false;
  std::atomic<uint32_t> aborted = 0;
};

// A watchdog that says when it would end the process.
class WatchdogTest : public ::testing::Test {
 protected:
  WatchdogOptions Options() {
    WatchdogOptions options;
    options.shards = 2;
    options.period = absl::Milliseconds(1);
    options.abort_limit = absl::Milliseconds(200);
    options.end_process = [this] { ended_.Notify(); };
    return options;
  }

  absl::Notification ended_;
  const std::shared_ptr<FakeCollectives> collectives_ = std::make_shared<FakeCollectives>();
};

TEST_F(WatchdogTest, EndsNothingThatIsWell) {
  {
    CudaWatchdog watchdog(Options());
    watchdog.Watch(collectives_);
    watchdog.Begin(0, {2, 1, absl::Hours(1)});
    watchdog.Report(0, absl::OkStatus());
    watchdog.End(0);
    watchdog.Unwatch(collectives_.get());
  }
  EXPECT_FALSE(ended_.HasBeenNotified());
  EXPECT_EQ(collectives_->aborted, 0u);
  EXPECT_EQ(collectives_.use_count(), 1) << "nobody keeps what is not watched";
}

TEST_F(WatchdogTest, AbortsAllShardsAtACommunicatorsError) {
  CudaWatchdog watchdog(Options());
  watchdog.Watch(collectives_);
  collectives_->fails = true;
  ended_.WaitForNotification();
  EXPECT_EQ(collectives_->aborted, 3u);
}

TEST_F(WatchdogTest, EndsWhereAbortsHang) {
  CudaWatchdog watchdog(Options());
  watchdog.Watch(collectives_);
  collectives_->hangs = true;
  watchdog.Report(0, absl::InternalError("illegal address"));
  ended_.WaitForNotification();
  EXPECT_EQ(collectives_->aborted, 3u);
}

TEST_F(WatchdogTest, EndsAtADeadline) {
  CudaWatchdog watchdog(Options());
  watchdog.Begin(1, {2, 1, absl::Milliseconds(1)});
  ended_.WaitForNotification();
}

// A group may end, and report that it cannot, just before its watchdog ends.
TEST_F(WatchdogTest, HearsTheLastReport) {
  {
    WatchdogOptions options = Options();
    options.period = absl::Hours(1);
    CudaWatchdog watchdog(options);
    watchdog.Report(1, absl::InternalError("cannot be aborted"));
  }
  EXPECT_TRUE(ended_.HasBeenNotified());
}

TEST_F(WatchdogTest, WaitsNoLongerThanAskedForAborts) {
  collectives_->hangs = true;
  EXPECT_FALSE(AbortWithin(collectives_, 2, absl::Milliseconds(5)));
  EXPECT_TRUE(AbortWithin(collectives_, 1, absl::InfiniteDuration())) << "shard 0 only";
}

TEST(WatchdogDeathTest, EndsTheProcessWithItsExitCode) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        CudaWatchdog watchdog({});
        watchdog.Begin(0, {2, 17, absl::Milliseconds(1)});
        absl::Notification().WaitForNotification();
      },
      ::testing::ExitedWithCode(kExitDeviceLost),
      "stage 2, microbatch 17, shard 0: not done after 1ms; ending the process with exit code 3");
}

}  // namespace
}  // namespace millrace
