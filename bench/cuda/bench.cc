#include "bench/cuda/bench.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace millrace::kernels::cuda {

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "cuda_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

DeviceBuffer::DeviceBuffer(size_t bytes) {
  Check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes), "cudaMalloc");
  Check(cudaMemset(data_, 0, bytes), "cudaMemset");
}

DeviceBuffer::~DeviceBuffer() {
  Check(cudaFree(data_), "cudaFree");
}

void DeviceBuffer::Fill(size_t floats, uint32_t seed) const {
  std::vector<float> values(floats);
  std::minstd_rand random(seed);
  for (float& value : values) value = static_cast<float>(random() % 2001) * 0.001f - 1.0f;
  Check(cudaMemcpy(data_, values.data(), floats * sizeof(float), cudaMemcpyHostToDevice), "cudaMemcpy");
}

double DeviceSeconds(const BenchOptions& options, const CudaQueue& queue, const std::function<void()>& call) {
  constexpr double kMilli = 1e-3;
  const cudaStream_t stream = queue.stream();
  call();
  Check(cudaStreamSynchronize(stream), "the first call");
  double seconds = 0;
  if (!options.smoke) {
    cudaEvent_t start = nullptr, end = nullptr;
    Check(cudaEventCreateWithFlags(&start, cudaEventDefault), "cudaEventCreate");
    Check(cudaEventCreateWithFlags(&end, cudaEventDefault), "cudaEventCreate");
    for (int calls = 1; seconds == 0; calls *= 2) {
      Check(cudaEventRecord(start, stream), "cudaEventRecord");
      for (int i = 0; i < calls; ++i) call();
      Check(cudaEventRecord(end, stream), "cudaEventRecord");
      Check(cudaEventSynchronize(end), "cudaEventSynchronize");
      float milliseconds = 0;
      Check(cudaEventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
      if (kMilli * milliseconds >= options.least_seconds) seconds = kMilli * milliseconds / calls;
    }
    Check(cudaEventDestroy(start), "cudaEventDestroy");
    Check(cudaEventDestroy(end), "cudaEventDestroy");
  }
  if (!queue.status().ok()) {
    std::fprintf(stderr, "cuda_bench: %s\n", queue.status().ToString().c_str());
    std::exit(1);
  }
  return seconds;
}

void Print(const BenchOptions& options, const Result& result) {
  std::printf(
      "{\"op\": \"%s\", \"type\": \"%s\", \"n\": %zu, \"k\": %zu, \"rows\": %zu, \"bytes\": %.0f, \"flops\": "
      "%.0f, ",
      result.op, result.type, result.n, result.k, result.rows, result.bytes, result.flops);
  if (options.smoke) {
    std::printf("\"seconds\": null}\n");
  } else {
    std::printf("\"seconds\": %.9f}\n", result.seconds);
  }
  std::fflush(stdout);
}

void BenchCopy(const BenchOptions& options, const CudaQueue& queue) {
  const size_t bytes = options.smoke ? size_t{1} << 20 : size_t{1} << 30;
  const DeviceBuffer from(bytes), to(bytes);
  const double seconds = DeviceSeconds(options, queue, [&] {
    Check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, queue.stream()),
          "copying");
  });
  Print(options, {"copy", "", 0, 0, 0, 2.0 * static_cast<double>(bytes), 0, seconds});
}

}  // namespace millrace::kernels::cuda
