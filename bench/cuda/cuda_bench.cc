// Times the CUDA backend's kernels on one device and prints a line of JSON for each: cuda_bench [--smoke]
// [DEVICE].
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bench/cuda/bench.h"

namespace millrace::kernels::cuda {
namespace {

int Main(int argc, char** argv) {
  BenchOptions options;
  int device = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--smoke") == 0) {
      options.smoke = true;
    } else {
      device = std::atoi(argv[i]);
    }
  }
#ifdef MILLRACE_ON_CPU
  constexpr bool kOnCpu = true;
  if (!options.smoke) {
    std::fprintf(
        stderr,
        "cuda_bench: this one runs on the stand-in, whose times say nothing of a device: --smoke only\n");
    return 1;
  }
#else
  constexpr bool kOnCpu = false;
#endif
  DeviceTraits traits;
  if (const absl::Status status = ReadTraits(device, &traits); !status.ok()) {
    std::fprintf(stderr, "cuda_bench: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  cudaDeviceProp properties{};
  Check(cudaSetDevice(device), "cudaSetDevice");
  Check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  int driver = 0;
  Check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  std::printf(
      "{\"device\": \"%s\", \"capability\": %d, \"multiprocessors\": %d, \"driver\": %d, \"stand_in\": %s}\n",
      properties.name, traits.capability, traits.multiprocessors, driver, kOnCpu ? "true" : "false");
  cudaStream_t stream = nullptr;
  Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  const CudaQueue queue(stream, traits);
  BenchCopy(options, queue);
  BenchMmaRate(options, queue);
  BenchMatMuls(options, queue);
  BenchAttention(options, queue);
  BenchSmallOps(options, queue);
  Check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  return 0;
}

}  // namespace
}  // namespace millrace::kernels::cuda

int main(int argc, char** argv) {
  return millrace::kernels::cuda::Main(argc, argv);
}
