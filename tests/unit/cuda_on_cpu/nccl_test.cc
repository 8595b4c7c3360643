// The stand-in for NCCL, from the NCCL user guide ("Communicator", "Group Calls", "Point-to-point",
// "Fault Tolerance").
#include "cuda_on_cpu/nccl.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace cuda_on_cpu {
namespace {

using millrace::kernels::cuda::DeviceArray;

ncclResult_t Settle(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) EXPECT_EQ(ncclCommGetAsyncError(comm, &state), ncclSuccess);
  return state;
}

ncclResult_t Settled(ncclComm_t comm, ncclResult_t result) {
  return result == ncclInProgress ? Settle(comm) : result;
}

// Two ranks, on devices 0 and 1.
class NcclTest : public ::testing::Test {
 protected:
  NcclTest() {
    ncclUniqueId id;
    EXPECT_EQ(ncclGetUniqueId(&id), ncclSuccess);
    EXPECT_EQ(ncclGroupStart(), ncclSuccess);
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_EQ(cudaSetDevice(rank), cudaSuccess);
      EXPECT_EQ(cudaStreamCreateWithFlags(&streams_[rank], cudaStreamNonBlocking), cudaSuccess);
      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
      config.blocking = 0;
      const ncclResult_t result = ncclCommInitRankConfig(&comms_[rank], 2, id, rank, &config);
      EXPECT_TRUE(result == ncclSuccess || result == ncclInProgress);
    }
    (void)ncclGroupEnd();
    for (ncclComm_t comm : comms_) EXPECT_EQ(Settle(comm), ncclSuccess);
  }
  ~NcclTest() override {
    ClearNcclFaults();
    for (ncclComm_t comm : comms_) {
      if (comm == nullptr) continue;
      EXPECT_EQ(ncclCommAbort(comm), ncclSuccess);
    }
    for (cudaStream_t stream : streams_) EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    EXPECT_EQ(LiveNcclCommunicators(), 0);
  }

  template <class Work>
  void RunRanks(Work work) {
    std::thread other([&] {
      EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
      work(1);
    });
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    work(0);
    other.join();
  }
  void Wait(int rank) { EXPECT_EQ(cudaStreamSynchronize(streams_[rank]), cudaSuccess); }

  ncclComm_t comms_[2] = {};
  cudaStream_t streams_[2] = {};
};

using NcclDeathTest = NcclTest;

// Sends and receives of one group make progress together; between two ranks they match in order.
TEST_F(NcclTest, RanksExchangeInOneGroup) {
  RunRanks([&](int rank) {
    const float own = static_cast<float>(rank + 1);
    const DeviceArray<float> from({own, 10 * own}), to(2);
    EXPECT_EQ(ncclGroupStart(), ncclSuccess);
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(ncclSend(from.data() + i, 1, ncclFloat, 1 - rank, comms_[rank], streams_[rank]), ncclSuccess);
      EXPECT_EQ(ncclRecv(to.data() + i, 1, ncclFloat, 1 - rank, comms_[rank], streams_[rank]), ncclSuccess);
    }
    EXPECT_EQ(Settled(comms_[rank], ncclGroupEnd()), ncclSuccess);
    Wait(rank);
    const float other = static_cast<float>(2 - rank);
    EXPECT_EQ(to.values(), (std::vector<float>{other, 10 * other}));
  });
}

TEST_F(NcclTest, GathersInPlaceAndReduces) {
  RunRanks([&](int rank) {
    std::vector<float> values(4, -1.0f);
    values[2 * rank] = values[2 * rank + 1] = static_cast<float>(rank + 1);
    const DeviceArray<float> all(values);
    EXPECT_EQ(Settled(comms_[rank], ncclAllGather(all.data() + 2 * rank, all.data(), 2, ncclFloat,
                                                  comms_[rank], streams_[rank])),
              ncclSuccess);
    EXPECT_EQ(Settled(comms_[rank], ncclAllReduce(all.data(), all.data(), 4, ncclFloat, ncclSum, comms_[rank],
                                                  streams_[rank])),
              ncclSuccess);
    Wait(rank);
    EXPECT_EQ(all.values(), (std::vector<float>{2, 2, 4, 4}));
  });
}

TEST_F(NcclTest, RefusesACallWhileTheLastIsInProgress) {
  SetNcclFault(NcclFault::kHangEnqueue, 0);
  const DeviceArray<float> values(1);
  EXPECT_EQ(ncclSend(values.data(), 1, ncclFloat, 1, comms_[0], streams_[0]), ncclInProgress);
  EXPECT_EQ(ncclSend(values.data(), 1, ncclFloat, 1, comms_[0], streams_[0]), ncclInvalidUsage);
  ncclResult_t state = ncclSuccess;
  EXPECT_EQ(ncclCommGetAsyncError(comms_[0], &state), ncclSuccess);
  EXPECT_EQ(state, ncclInvalidUsage);
  EXPECT_STRNE(ncclGetLastError(comms_[0]), "");
}

TEST_F(NcclTest, FinalizesThenDestroys) {
  for (ncclComm_t comm : comms_) EXPECT_EQ(ncclCommFinalize(comm), ncclInProgress);
  for (ncclComm_t& comm : comms_) {
    EXPECT_EQ(Settle(comm), ncclSuccess);
    EXPECT_EQ(ncclCommDestroy(comm), ncclSuccess);
    comm = nullptr;
  }
}

TEST_F(NcclTest, ReadsFaultsFromText) {
  EXPECT_TRUE(SetNcclFaults("hang-work=1@200,fail-async=0@7"));
  EXPECT_FALSE(SetNcclFaults("hang-work"));
  EXPECT_FALSE(SetNcclFaults("hang-everything=1"));
  EXPECT_FALSE(SetNcclFaults("hang-work=-1"));
}

TEST_F(NcclDeathTest, EndsAtMisuse) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH((void)ncclCommDestroy(comms_[0]), "destroyed that is not finalized");
  EXPECT_DEATH((void)ncclCommFinalize(reinterpret_cast<ncclComm_t>(&comms_)), "not, or no longer");
  EXPECT_DEATH(RunRanks([&](int rank) {
                 const DeviceArray<float> values(2);
                 (void)Settled(comms_[rank],
                               rank == 0 ? ncclSend(values.data(), 2, ncclFloat, 1, comms_[0], streams_[0])
                                         : ncclRecv(values.data(), 1, ncclFloat, 0, comms_[1], streams_[1]));
                 Wait(rank);
               }),
               "rank 1 receives 1 floats of 2 that rank 0 sends");
}

}  // namespace
}  // namespace cuda_on_cpu
