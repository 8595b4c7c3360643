// How fast tensor cores go when nothing else holds them up: operands stay in registers, in chains that do
// not wait for each other.
#include "bench/cuda/bench.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChains = 8;

// Writes what it computed where `never` says so, so that it is computed.
template <bool floats>
__global__ void __launch_bounds__(kThreads, 1) MmaLoop(int rounds, bool never, float* out) {
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t a[4] = {lane, lane + 1, lane + 2, lane + 3}, b[2] = {lane + 4, lane + 5};
  int integers[kChains][4] = {};
  float reals[kChains][4] = {};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
      if constexpr (floats) {
        mma_f16(reals[chain], a, b);
      } else {
        mma_s8(integers[chain], a, b);
      }
    }
  }
  if (!never) return;
  float sum = 0;
#pragma unroll
  for (int chain = 0; chain < kChains; ++chain) {
    for (int i = 0; i < 4; ++i) sum += reals[chain][i] + static_cast<float>(integers[chain][i]);
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

}  // namespace

void BenchMmaRate(const BenchOptions& options, const CudaQueue& queue) {
  const int rounds = options.smoke ? 2 : 4096;
  const int blocks = options.smoke ? 1 : 8 * queue.traits().multiprocessors;
  const DeviceBuffer out(static_cast<size_t>(blocks) * kThreads * sizeof(float));
  for (const bool floats : {false, true}) {
    const LaunchShape shape = {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
    const double seconds = DeviceSeconds(options, queue, [&] {
      Check(
          Launch(floats ? MmaLoop<true> : MmaLoop<false>, shape, queue.stream(), rounds, false, out.floats()),
          "launch of the mma loop");
    });
    const double products = 16.0 * 8.0 * (floats ? 16.0 : 32.0);
    const double flops = 2 * products * kChains * rounds * (kThreads / kWarp) * blocks;
    Print(options, {"mma", floats ? "F16" : "int8", 0, 0, 0, 0, flops, seconds});
  }
}

}  // namespace millrace::kernels::cuda
