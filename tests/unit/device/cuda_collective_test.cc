#include <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "cuda_on_cpu/nccl.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/work_share.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "worker/device/cpu/shard_team.h"
#include "worker/device/cuda/cuda_collectives.h"

namespace millrace {
namespace {

using cuda_on_cpu::NcclFault;
using kernels::WorkShare;
using kernels::cuda::CudaQueue;
using kernels::cuda::DeviceArray;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Values of very different sizes, so that another order of adding gives other bits.
float Value(uint32_t segment, size_t i) {
  return std::ldexp(1.0f + static_cast<float>((i * 37 + segment * 101) % 97) / 97.0f,
                    static_cast<int>((segment * 5 + i) % 23) - 11);
}

std::vector<float> Values(uint32_t segment, size_t floats) {
  std::vector<float> values(floats);
  for (size_t i = 0; i < floats; ++i) values[i] = Value(segment, i);
  return values;
}

struct Case {
  uint32_t shards;
  uint32_t segments;
  uint32_t rows;
  uint32_t columns;
};

// Shards with a stream each, on devices 0, 1, ... or all on device 0.
class Shards {
 public:
  Shards(uint32_t shards, bool one_device) : team_(shards) {
    for (uint32_t i = 0; i < shards; ++i) {
      kernels::cuda::DeviceTraits traits = kernels::cuda::TraitsOfAllKinds().back();
      traits.device = one_device ? 0 : static_cast<int>(i);
      EXPECT_EQ(cudaSetDevice(traits.device), cudaSuccess);
      EXPECT_EQ(cudaStreamCreateWithFlags(&streams_.emplace_back(), cudaStreamNonBlocking), cudaSuccess);
      owned_.push_back(std::make_unique<CudaQueue>(streams_.back(), traits));
      queues_.push_back(owned_.back().get());
    }
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  }
  ~Shards() {
    for (cudaStream_t stream : streams_) EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  }

  const std::vector<const CudaQueue*>& queues() const { return queues_; }
  uint32_t size() const { return team_.size(); }

  // Calls work(rank) in each shard's thread, with its device.
  void Run(absl::FunctionRef<void(uint32_t)> work) {
    team_.Run([&](uint32_t rank) {
      EXPECT_EQ(cudaSetDevice(queues_[rank]->traits().device), cudaSuccess);
      work(rank);
    });
  }
  void Finish(uint32_t rank) {
    EXPECT_EQ(cudaStreamSynchronize(streams_[rank]), cudaSuccess);
    EXPECT_TRUE(queues_[rank]->status().ok()) << queues_[rank]->status();
  }

 private:
  ShardTeam team_;
  std::vector<cudaStream_t> streams_;
  std::vector<std::unique_ptr<CudaQueue>> owned_;
  std::vector<const CudaQueue*> queues_;
};

CudaCollectiveOptions Options(const Case& c) {
  CudaCollectiveOptions options;
  options.sizes = {c.segments, c.rows, c.columns};
  options.init_limit = options.enqueue_limit = options.finalize_limit = absl::Seconds(60);
  return options;
}

// Sums of several rounds, enqueued without waiting; every shard's residual stream.
class Sums {
 public:
  static constexpr uint32_t kRounds = 3;

  Sums(const Case& c, bool one_device)
      : case_(c), floats_(size_t{c.rows} * c.columns), shards_(c.shards, one_device) {
    memory_.resize(c.shards);
    shards_.Run([&](uint32_t rank) {
      memory_[rank].residual = std::make_unique<DeviceArray<float>>(Values(99, floats_));
      const WorkShare::Range own = Own(rank);
      for (uint32_t round = 0; round < kRounds; ++round) {
        for (size_t segment = own.begin; segment < own.end; ++segment) {
          memory_[rank].inputs.push_back(
              std::make_unique<DeviceArray<float>>(Values(static_cast<uint32_t>(segment) + round, floats_)));
        }
      }
    });
  }

  Shards& shards() { return shards_; }
  float* residual(uint32_t rank) { return memory_[rank].residual->data(); }
  std::vector<float> Result(uint32_t rank) {
    EXPECT_TRUE(memory_[rank].residual->Intact()) << "written beyond the residual stream of shard " << rank;
    return memory_[rank].residual->values();
  }

  // One round of shard `rank`.
  absl::Status Enqueue(Collective& collective, uint32_t rank, uint32_t round) {
    const WorkShare::Range own = Own(rank);
    for (size_t segment = own.begin; segment < own.end; ++segment) {
      const size_t input = round * (own.end - own.begin) + segment - own.begin;
      EXPECT_EQ(cudaMemcpyAsync(collective.Partial(static_cast<uint32_t>(segment)),
                                memory_[rank].inputs[input]->data(), floats_ * sizeof(float),
                                cudaMemcpyDeviceToDevice, shards_.queues()[rank]->stream()),
                cudaSuccess);
    }
    return collective.AllReduce({residual(rank), case_.rows, case_.columns, case_.segments});
  }

  // What one shard gives, after `repeats` times all rounds.
  std::vector<float> Expected(uint32_t repeats = 1) const {
    std::vector<float> expected = Values(99, floats_);
    for (uint32_t round = 0; round < repeats * kRounds; ++round) {
      for (size_t i = 0; i < floats_; ++i) {
        for (uint32_t segment = 0; segment < case_.segments; ++segment) {
          expected[i] += Value(segment + round % kRounds, i);
        }
      }
    }
    return expected;
  }

 private:
  struct Memory {
    std::unique_ptr<DeviceArray<float>> residual;
    std::vector<std::unique_ptr<DeviceArray<float>>> inputs;  // by round and own segment
  };
  WorkShare::Range Own(uint32_t rank) const { return WorkShare{rank, case_.shards}.Of(case_.segments); }

  const Case case_;
  const size_t floats_;
  Shards shards_;
  std::vector<Memory> memory_;
};

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

class CudaCollectiveTest : public ::testing::Test {
 protected:
  ~CudaCollectiveTest() override {
    cuda_on_cpu::ClearNcclFaults();
    EXPECT_EQ(cuda_on_cpu::LiveNcclCommunicators(), left_behind_);
  }
  int left_behind_ = 0;  // communicators that cannot be given back
};

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

CudaCollectiveOptions Impatient() {
  CudaCollectiveOptions options = Options({2, 2, 1, 4});
  options.init_limit = options.enqueue_limit = options.finalize_limit = absl::Milliseconds(20);
  options.abort_limit = absl::Milliseconds(200);
  return options;
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
