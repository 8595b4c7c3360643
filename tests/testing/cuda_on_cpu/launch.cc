#include "cuda_on_cpu/launch.h"

#include <atomic>
#include <utility>

#include "fibers.h"
#include "kernel_launch.h"
#include "random.h"

namespace cuda_on_cpu {
namespace {

std::atomic<uint64_t> seed{1};

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
bool WithinLimits(const KernelLaunch& launch) {
  const dim3& grid = launch.grid;
  const dim3& block = launch.block;
  constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYz = 65535, kMaxBlockXy = 1024, kMaxBlockZ = 64;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0) return false;
  if (grid.x > kMaxGridX || grid.y > kMaxGridYz || grid.z > kMaxGridYz) return false;
  if (block.x > kMaxBlockXy || block.y > kMaxBlockXy || block.z > kMaxBlockZ) return false;
  return block.x * block.y * block.z <= internal::kMaxBlockThreads;
}

uint64_t Gcd(uint64_t a, uint64_t b) {
  return b == 0 ? a : Gcd(b, a % b);
}

}  // namespace

void SetSeed(uint64_t value) {
  seed = value;
}

cudaError_t StartKernel(cudaStream_t stream, KernelLaunch launch) {
  if (!WithinLimits(launch)) return cudaErrorInvalidConfiguration;
  if (launch.shared_bytes > MaxSharedBytesPerBlock()) return cudaErrorInvalidValue;
  return EnqueueKernel(stream, std::move(launch));
}

void RunKernel(const KernelLaunch& launch) {
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const uint64_t launch_seed = seed;
  // Steps that have no factor in common with the number of blocks visit each once.
  internal::Random random(launch_seed + blocks);
  uint64_t at = 0, step = 1;
  if (launch_seed != 0 && blocks > 1) {
    at = random.Next() % blocks;
    do {
      step = random.Next() % blocks;
    } while (Gcd(step, blocks) != 1);
  }
  internal::BlockRunner& runner = internal::BlockRunner::OfThisThread();
  for (uint64_t i = 0; i < blocks; ++i) {
    runner.Run(launch, at, launch_seed == 0 ? 0 : random.Next() | 1);
    at = (at + step) % blocks;
  }
}

}  // namespace cuda_on_cpu
