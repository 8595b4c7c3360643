// What becomes of collectives when a shard, a device or NCCL fails or hangs: everything ends.
#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "common/options.h"
#include "cuda_on_cpu/nccl.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/device/cuda_shards.h"
#include "worker/device/cuda/watchdog.h"

namespace millrace {
namespace {

using cuda_on_cpu::NcclFault;
using cuda_on_cpu::SetNcclFault;
using ::testing::AllOf;
using ::testing::HasSubstr;

const Case kCase{2, 2, 1, 4};

class CudaFaultTest : public CudaCollectiveTest {
 protected:
  CudaFaultTest() {
    WatchdogOptions options;
    options.shards = 2;
    options.period = absl::Milliseconds(1);
    options.abort_limit = absl::Seconds(60);
    options.end_process = [this] { ended_.Notify(); };
    watchdog_ = std::make_unique<CudaWatchdog>(options);
    options_ = Impatient();
    options_.enqueue_limit = absl::Seconds(60);
    options_.watchdog = watchdog_.get();
  }

  absl::Notification ended_;
  std::unique_ptr<CudaWatchdog> watchdog_;
  CudaCollectiveOptions options_;
};

// One piece of work, watched, until it is done or its collectives are aborted.
void RunWatched(Sums& sums, CollectiveGroup& group, CudaWatchdog& watchdog, absl::Duration limit) {
  sums.shards().Run([&](uint32_t rank) {
    watchdog.Begin(rank, {1, 77, limit});
    (void)sums.Enqueue(group.shard(rank), rank, 0);
    EXPECT_EQ(cudaStreamSynchronize(sums.shards().queues()[rank]->stream()), cudaSuccess);
  });
}

TEST_F(CudaFaultTest, EndsAShardThatHangs) {
  Sums sums(kCase, false);
  const auto group = MakeNcclCollectives(sums.shards().queues(), options_);
  ASSERT_TRUE(group.ok()) << group.status();
  SetNcclFault(NcclFault::kHangWork, 1);
  RunWatched(sums, **group, *watchdog_, absl::Milliseconds(50));
  ended_.WaitForNotification();
  EXPECT_EQ(cuda_on_cpu::LiveNcclCommunicators(), 0) << "all are aborted";
}

TEST_F(CudaFaultTest, EndsAtAnErrorOfTheDevice) {
  Sums sums(kCase, false);
  const auto group = MakeNcclCollectives(sums.shards().queues(), options_);
  ASSERT_TRUE(group.ok()) << group.status();
  SetNcclFault(NcclFault::kFailAsync, 1);
  ended_.WaitForNotification();
}

TEST_F(CudaFaultTest, EndsWhereNcclTakesNothing) {
  options_.enqueue_limit = absl::Milliseconds(20);
  Sums sums(kCase, false);
  const auto group = MakeNcclCollectives(sums.shards().queues(), options_);
  ASSERT_TRUE(group.ok()) << group.status();
  SetNcclFault(NcclFault::kHangEnqueue, 0);
  SetNcclFault(NcclFault::kHangEnqueue, 1);
  sums.shards().Run([&](uint32_t rank) {
    const absl::Status status = sums.Enqueue((*group)->shard(rank), rank, 0);
    EXPECT_FALSE(status.ok());
    if (absl::IsAborted(status)) return;  // by the watchdog, which the other shard told
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("exchange of partial sums of shard"), HasSubstr("after 20ms")));
  });
  ended_.WaitForNotification();
}

// A shard of one device that never comes to a meeting of the host's threads.
TEST_F(CudaFaultTest, EndsShardsOfOneDeviceThatWait) {
  Sums sums(kCase, true);
  const auto group = MakeLocalCollectives(sums.shards().queues(), options_);
  ASSERT_TRUE(group.ok()) << group.status();
  sums.shards().Run([&](uint32_t rank) {
    if (rank == 1) return;
    watchdog_->Begin(rank, {1, 77, absl::Milliseconds(20)});
    EXPECT_TRUE(absl::IsAborted(sums.Enqueue((*group)->shard(rank), rank, 0)));
  });
  ended_.WaitForNotification();
}

// A shard that cannot go on takes the others along.
TEST_F(CudaFaultTest, AbortEndsAllShards) {
  for (const bool one_device : {false, true}) {
    Sums sums(kCase, one_device);
    const auto group = one_device ? MakeLocalCollectives(sums.shards().queues(), options_)
                                  : MakeNcclCollectives(sums.shards().queues(), options_);
    ASSERT_TRUE(group.ok()) << group.status();
    sums.shards().Run([&](uint32_t rank) {
      Collective& collective = (*group)->shard(rank);
      if (rank == 1) return collective.Abort();
      (void)sums.Enqueue(collective, rank, 0);
      EXPECT_EQ(cudaStreamSynchronize(sums.shards().queues()[rank]->stream()), cudaSuccess);
      EXPECT_TRUE(absl::IsAborted(collective.Barrier()));
      EXPECT_TRUE(absl::IsAborted(sums.Enqueue(collective, rank, 0)));
    });
  }
  EXPECT_FALSE(ended_.HasBeenNotified()) << "nobody reported an error";
}

TEST_F(CudaFaultTest, AbortsWhatCannotBeFinalized) {
  {
    Sums sums(kCase, false);
    const auto group = MakeNcclCollectives(sums.shards().queues(), options_);
    ASSERT_TRUE(group.ok()) << group.status();
    SetNcclFault(NcclFault::kHangFinalize, 1);
  }
  EXPECT_EQ(cuda_on_cpu::LiveNcclCommunicators(), 0);
  EXPECT_FALSE(ended_.HasBeenNotified());
}

TEST_F(CudaFaultTest, EndsWhereNothingCanBeGivenBack) {
  {
    Sums sums(kCase, false);
    const auto group = MakeNcclCollectives(sums.shards().queues(), options_);
    ASSERT_TRUE(group.ok()) << group.status();
    SetNcclFault(NcclFault::kHangFinalize, 1);
    SetNcclFault(NcclFault::kHangAbort, 1);
  }
  ended_.WaitForNotification();
}

using CudaFaultDeathTest = CudaFaultTest;

// The same as it is in a worker: one line, and the exit code.
TEST_F(CudaFaultDeathTest, HangingWorkAndAbortsEndTheProcess) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        WatchdogOptions watch;
        watch.shards = 2;
        watch.abort_limit = absl::Milliseconds(50);
        CudaWatchdog watchdog(watch);
        options_.watchdog = &watchdog;
        Sums sums(kCase, false);
        const auto group = MakeNcclCollectives(sums.shards().queues(), options_);
        SetNcclFault(NcclFault::kHangWork, 1);
        SetNcclFault(NcclFault::kHangAbort, 0);
        SetNcclFault(NcclFault::kHangAbort, 1);
        RunWatched(sums, **group, watchdog, absl::Milliseconds(20));
        absl::Notification().WaitForNotification();
      },
      ::testing::ExitedWithCode(kExitDeviceLost),
      "stage 1, microbatch 77, shard 0, last collective: sum 1 of 1 x 4 floats: not done after 20ms");
}

}  // namespace
}  // namespace millrace
