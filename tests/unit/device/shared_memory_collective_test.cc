#include "worker/device/cpu/shared_memory_collective.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/work_share.h"
#include "worker/device/cpu/shard_team.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kSegments = 7;
constexpr uint32_t kRows = 5;
constexpr uint32_t kColumns = 83;

// Sums of very different sizes, so that another order of adding gives other bits.
float Value(uint32_t segment, size_t i) {
  return std::ldexp(1.0f + static_cast<float>((i * 37 + segment * 101) % 97) / 97.0f,
                    static_cast<int>((segment * 5 + i) % 23) - 11);
}

class SharedMemoryCollectiveTest : public ::testing::TestWithParam<uint32_t> {
 protected:
  SharedMemoryCollectiveTest() {
    for (uint32_t i = 0; i < GetParam(); ++i) {
      backends_.push_back(*kernels::MakeCpuBackend({.isa = i % 2 == 0 ? "auto" : "portable"}));
      pointers_.push_back(backends_.back().get());
    }
  }

  std::vector<std::unique_ptr<kernels::Backend>> backends_;
  std::vector<const kernels::Backend*> pointers_;
};
INSTANTIATE_TEST_SUITE_P(Shards, SharedMemoryCollectiveTest, ::testing::Values(1u, 2u, 3u, 7u));

TEST_P(SharedMemoryCollectiveTest, AddsAllSegmentsInRisingOrder) {
  auto group = SharedMemoryGroup::Create(pointers_, {kSegments, kRows, kColumns});
  ASSERT_TRUE(group.ok()) << group.status();
  const size_t floats = size_t{kRows} * kColumns;
  std::vector<float> residual(floats);
  std::vector<float> expected(floats);
  for (size_t i = 0; i < floats; ++i) residual[i] = expected[i] = Value(99, i);
  constexpr int kRounds = 20;
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < floats; ++i) {
      for (uint32_t segment = 0; segment < kSegments; ++segment) expected[i] += Value(segment + round, i);
    }
  }
  ShardTeam team(GetParam());
  team.Run([&](uint32_t rank) {
    Collective& shard = (*group)->shard(rank);
    EXPECT_EQ(shard.rank(), rank);
    EXPECT_EQ(shard.size(), GetParam());
    const kernels::WorkShare::Range own = kernels::WorkShare{rank, GetParam()}.Of(kSegments);
    for (int round = 0; round < kRounds; ++round) {
      for (uint32_t segment = own.begin; segment < own.end; ++segment) {
        for (size_t i = 0; i < floats; ++i) shard.Partial(segment)[i] = Value(segment + round, i);
      }
      EXPECT_EQ(shard.AllReduce({residual.data(), kRows, kColumns, kSegments}), absl::OkStatus());
    }
    EXPECT_EQ(std::memcmp(residual.data(), expected.data(), floats * sizeof(float)), 0)
        << "shard " << rank << " must see the whole sum";
    EXPECT_GT(shard.spent_ns(), 0);
    EXPECT_EQ(shard.Barrier(), absl::OkStatus()) << "before another shard's vectors go away";
  });
}

// Rows and columns that are not in the sum keep their bits, and so do segments that are not.
TEST_P(SharedMemoryCollectiveTest, TouchesNothingElse) {
  auto group = SharedMemoryGroup::Create(pointers_, {kSegments, kRows, kColumns});
  ASSERT_TRUE(group.ok());
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> residual(3 * 20, 1.0f);
  ShardTeam team(GetParam());
  team.Run([&](uint32_t rank) {
    Collective& shard = (*group)->shard(rank);
    if (rank == 0) {
      for (uint32_t segment = 0; segment < kSegments; ++segment) {
        std::fill_n(shard.Partial(segment), shard.partial_stride(), kNan);
        if (segment < 2) std::fill_n(shard.Partial(segment), 2 * 20, 1.0f);
      }
    }
    EXPECT_EQ(shard.AllReduce({residual.data(), 2, 20, 2}), absl::OkStatus());
  });
  for (size_t i = 0; i < residual.size(); ++i) EXPECT_EQ(residual[i], i < 40 ? 3.0f : 1.0f) << i;
}

TEST_P(SharedMemoryCollectiveTest, AShardThatFailsLeavesNoneWaiting) {
  auto group = SharedMemoryGroup::Create(pointers_, {kSegments, kRows, kColumns});
  ASSERT_TRUE(group.ok());
  std::vector<float> residual(kRows * kColumns);
  ShardTeam team(GetParam());
  team.Run([&](uint32_t rank) {
    Collective& shard = (*group)->shard(rank);
    if (rank + 1 == GetParam()) shard.Abort();
    EXPECT_EQ(shard.AllReduce({residual.data(), kRows, kColumns, kSegments}).code(),
              absl::StatusCode::kAborted);
    EXPECT_EQ(shard.Barrier().code(), absl::StatusCode::kAborted);
  });
}

TEST(SharedMemoryGroupTest, RefusesSumsThatDoNotFit) {
  const auto backend = *kernels::MakeCpuBackend({});
  for (const CollectiveOptions& options :
       {CollectiveOptions{12, ~0u, ~0u}, CollectiveOptions{~0u, 1u << 15, 1u << 16}}) {
    const absl::Status status = SharedMemoryGroup::Create({backend.get()}, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("partial sums"));
  }
}

}  // namespace
}  // namespace millrace
