// Shards of CUDA devices, and sums of theirs whose result is known.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "cuda_on_cpu/nccl.h"
#include "gtest/gtest.h"
#include "kernels/work_share.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "worker/device/cpu/shard_team.h"
#include "worker/device/cuda/cuda_collectives.h"

namespace millrace {

// Values of very different sizes, so that another order of adding gives other bits.
inline float Value(uint32_t segment, size_t i) {
  return std::ldexp(1.0f + static_cast<float>((i * 37 + segment * 101) % 97) / 97.0f,
                    static_cast<int>((segment * 5 + i) % 23) - 11);
}

inline std::vector<float> Values(uint32_t segment, size_t floats) {
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
      owned_.push_back(std::make_unique<kernels::cuda::CudaQueue>(streams_.back(), traits));
      queues_.push_back(owned_.back().get());
    }
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  }
  ~Shards() {
    for (cudaStream_t stream : streams_) EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  }

  const std::vector<const kernels::cuda::CudaQueue*>& queues() const { return queues_; }
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
  std::vector<std::unique_ptr<kernels::cuda::CudaQueue>> owned_;
  std::vector<const kernels::cuda::CudaQueue*> queues_;
};

inline CudaCollectiveOptions Options(const Case& c) {
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
      memory_[rank].residual = std::make_unique<kernels::cuda::DeviceArray<float>>(Values(99, floats_));
      const kernels::WorkShare::Range own = Own(rank);
      for (uint32_t round = 0; round < kRounds; ++round) {
        for (size_t segment = own.begin; segment < own.end; ++segment) {
          memory_[rank].inputs.push_back(std::make_unique<kernels::cuda::DeviceArray<float>>(
              Values(static_cast<uint32_t>(segment) + round, floats_)));
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
    const kernels::WorkShare::Range own = Own(rank);
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
    std::unique_ptr<kernels::cuda::DeviceArray<float>> residual;
    std::vector<std::unique_ptr<kernels::cuda::DeviceArray<float>>> inputs;  // by round and own segment
  };
  kernels::WorkShare::Range Own(uint32_t rank) const {
    return kernels::WorkShare{rank, case_.shards}.Of(case_.segments);
  }

  const Case case_;
  const size_t floats_;
  Shards shards_;
  std::vector<Memory> memory_;
};

// Leaves no fault and no communicator behind.
class CudaCollectiveTest : public ::testing::Test {
 protected:
  ~CudaCollectiveTest() override {
    cuda_on_cpu::ClearNcclFaults();
    // Aborts that hung end now.
    while (cuda_on_cpu::LiveNcclCommunicators() != 0) std::this_thread::yield();
  }
};

// As short as a test of what never ends can be.
inline CudaCollectiveOptions Impatient() {
  CudaCollectiveOptions options = Options({2, 2, 1, 4});
  options.init_limit = options.enqueue_limit = options.finalize_limit = absl::Milliseconds(20);
  options.abort_limit = absl::Milliseconds(200);
  return options;
}

}  // namespace millrace
