#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda_on_cpu/nccl.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/device/cuda_shards.h"
#include "worker/device/cuda/cuda_collectives.h"

namespace millrace {
namespace {

using cuda_on_cpu::NcclFault;
using ::testing::AllOf;
using ::testing::HasSubstr;

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Few floats, which each shard adds all of; slices that divide evenly; slices and a rest.
const Case kCases[] = {{2, 12, 1, 7},    {3, 12, 5, 83},  {4, 4, 2, 576},   {8, 12, 1, 8192},
                       {2, 12, 3, 4096}, {3, 7, 5, 2051}, {4, 12, 9, 1031}, {8, 8, 33, 259}};

void ExpectOneShardsBits(const Case& c, bool one_device) {
  SCOPED_TRACE(::testing::Message() << c.shards << " shards, " << c.segments << " segments, " << c.rows
                                    << " x " << c.columns);
  Sums sums(c, one_device);
  auto group = one_device ? MakeLocalCollectives(sums.shards().queues(), Options(c))
                          : MakeNcclCollectives(sums.shards().queues(), Options(c));
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ((*group)->capturable(), !one_device);
  sums.shards().Run([&](uint32_t rank) {
    Collective& collective = (*group)->shard(rank);
    EXPECT_EQ(collective.rank(), rank);
    EXPECT_EQ(collective.size(), c.shards);
    for (uint32_t round = 0; round < Sums::kRounds; ++round) {
      EXPECT_EQ(sums.Enqueue(collective, rank, round), absl::OkStatus());
    }
    sums.shards().Finish(rank);
    EXPECT_GT(collective.spent_ns(), 0);
  });
  const std::vector<float> expected = sums.Expected();
  for (uint32_t rank = 0; rank < c.shards; ++rank) {
    EXPECT_TRUE(SameBits(sums.Result(rank), expected)) << "shard " << rank;
  }
}

TEST_F(CudaCollectiveTest, AnyNumberOfDevicesGivesTheBitsOfOne) {
  for (const Case& c : kCases) ExpectOneShardsBits(c, /*one_device=*/false);
}

TEST_F(CudaCollectiveTest, AnyNumberOfShardsOfOneDeviceGivesTheBitsOfOne) {
  for (const Case& c : kCases) ExpectOneShardsBits(c, /*one_device=*/true);
}

// Any order of adding: as close as float32 sums of that many terms are, and the same for all shards.
TEST_F(CudaCollectiveTest, AllReduceAddsInAnyOrder) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(::testing::Message() << c.shards << " shards, " << c.rows << " x " << c.columns);
    Sums sums(c, false);
    CudaCollectiveOptions options = Options(c);
    options.kind = CudaCollectiveKind::kAllReduce;
    auto group = MakeNcclCollectives(sums.shards().queues(), options);
    ASSERT_TRUE(group.ok()) << group.status();
    sums.shards().Run([&](uint32_t rank) {
      for (uint32_t round = 0; round < Sums::kRounds; ++round) {
        EXPECT_EQ(sums.Enqueue((*group)->shard(rank), rank, round), absl::OkStatus());
      }
      sums.shards().Finish(rank);
    });
    const std::vector<float> first = sums.Result(0);
    const std::vector<float> expected = sums.Expected();
    // All terms are positive: no sum on the way is larger than the last one.
    const float terms = static_cast<float>(Sums::kRounds * c.segments + 1);
    const float relative = 2 * terms * std::ldexp(1.0f, -24);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(first[i], expected[i], relative * expected[i]) << i;
    }
    for (uint32_t rank = 1; rank < c.shards; ++rank) EXPECT_TRUE(SameBits(sums.Result(rank), first)) << rank;
  }
}

// All shards record at the same time; each replay adds all rounds again.
TEST_F(CudaCollectiveTest, ReplaysWhatWasRecorded) {
  for (const CudaCollectiveKind kind : {CudaCollectiveKind::kOrdered, CudaCollectiveKind::kAllReduce}) {
    for (const Case& c : {kCases[0], kCases[5]}) {
      Sums sums(c, false);
      CudaCollectiveOptions options = Options(c);
      options.kind = kind;
      auto group = MakeNcclCollectives(sums.shards().queues(), options);
      ASSERT_TRUE(group.ok()) << group.status();
      constexpr uint32_t kReplays = 3;
      sums.shards().Run([&](uint32_t rank) {
        cudaStream_t stream = sums.shards().queues()[rank]->stream();
        EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
        for (uint32_t round = 0; round < Sums::kRounds; ++round) {
          EXPECT_EQ(sums.Enqueue((*group)->shard(rank), rank, round), absl::OkStatus());
        }
        cudaGraph_t graph = nullptr;
        EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
        cudaGraphExec_t work = nullptr;
        EXPECT_EQ(cudaGraphInstantiate(&work, graph, 0), cudaSuccess);
        EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
        EXPECT_TRUE(SameBits(sums.Result(rank), sums.Expected(0))) << "recording ran nothing";
        for (uint32_t i = 0; i < kReplays; ++i) EXPECT_EQ(cudaGraphLaunch(work, stream), cudaSuccess);
        sums.shards().Finish(rank);
        EXPECT_EQ(cudaGraphExecDestroy(work), cudaSuccess);
      });
      const std::vector<float> first = sums.Result(0);
      const bool exact = SameBits(first, sums.Expected(kReplays));
      EXPECT_TRUE(exact || kind == CudaCollectiveKind::kAllReduce);
      for (uint32_t rank = 1; rank < c.shards; ++rank)
        EXPECT_TRUE(SameBits(sums.Result(rank), first)) << rank;
    }
  }
}

TEST_F(CudaCollectiveTest, SaysWhichShardCannotJoin) {
  Shards shards(2, false);
  cuda_on_cpu::SetNcclFault(NcclFault::kFailInit, 1);
  const auto group = MakeNcclCollectives(shards.queues(), Impatient());
  EXPECT_EQ(group.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(group.status().message(),
              AllOf(HasSubstr("shard 1 of 2 (device 1)"), HasSubstr("no shared memory")));
}

TEST_F(CudaCollectiveTest, DoesNotWaitForAShardThatNeverJoins) {
  Shards shards(2, false);
  cuda_on_cpu::SetNcclFault(NcclFault::kHangInit, 1);
  const auto group = MakeNcclCollectives(shards.queues(), Impatient());
  EXPECT_EQ(group.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(group.status().message(), HasSubstr("joining of shard 1 of 2 (device 1): not done after 20ms"));
}

TEST_F(CudaCollectiveTest, RefusesTwoShardsOfOneDevice) {
  Shards shards(2, true);
  const auto group = MakeNcclCollectives(shards.queues(), Impatient());
  EXPECT_EQ(group.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(group.status().message(), HasSubstr("Duplicate GPU"));
}

TEST_F(CudaCollectiveTest, RefusesMoreThanTheDeviceHolds) {
  Shards shards(2, false);
  CudaCollectiveOptions options = Impatient();
  options.sizes.max_rows = options.sizes.columns = ~uint32_t{0};
  EXPECT_EQ(MakeNcclCollectives(shards.queues(), options).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MakeLocalCollectives(Shards(2, true).queues(), options).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(CudaCollectiveTest, ReportsAnErrorOfTheDevice) {
  const Case c{2, 2, 1, 4};
  Sums sums(c, false);
  auto group = MakeNcclCollectives(sums.shards().queues(), Impatient());
  ASSERT_TRUE(group.ok()) << group.status();
  cuda_on_cpu::SetNcclFault(NcclFault::kFailAsync, 0);
  cuda_on_cpu::SetNcclFault(NcclFault::kFailAsync, 1);
  absl::Status statuses[2];
  sums.shards().Run([&](uint32_t rank) {
    absl::Status& status = statuses[rank];
    for (int i = 0; i < 100 && status.ok(); ++i) status = sums.Enqueue((*group)->shard(rank), rank, 0);
    (*group)->shard(rank).Abort();
  });
  const absl::Status& first = absl::IsAborted(statuses[0]) ? statuses[1] : statuses[0];
  EXPECT_EQ(first.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(first.message(), AllOf(HasSubstr(" of 2 (device "), HasSubstr("network error")));
  for (const absl::Status& status : statuses) EXPECT_FALSE(status.ok());
}

}  // namespace
}  // namespace millrace
