// What the CUDA benchmark's parts share: options, device memory, time on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>

#include "kernels/cuda/cuda_queue.h"

namespace millrace::kernels::cuda {

struct BenchOptions {
  // One call of everything at small sizes; times are not printed. The stand-in, whose times say nothing of a
  // device, does nothing else.
  bool smoke = false;
  double least_seconds = 0.2;  // of each measurement
};

// Ends the process where `error` is one.
void Check(cudaError_t error, const char* what);

// Device memory, freed at the end.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  uint8_t* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }
  // Floats between -1 and 1.
  void Fill(size_t floats, uint32_t seed) const;

 private:
  uint8_t* data_ = nullptr;
};

// Seconds of the stream's time that one `call` takes, between two events round as many as last for
// options.least_seconds, after one that is not counted. 0 with options.smoke.
double DeviceSeconds(const BenchOptions& options, const CudaQueue& queue, const std::function<void()>& call);

// {"op": "copy", "bytes": read and written, "seconds"}
void BenchCopy(const BenchOptions& options, const CudaQueue& queue);
// {"op": "mma", "type", "flops", "seconds"}: tensor cores with operands in registers.
void BenchMmaRate(const BenchOptions& options, const CudaQueue& queue);
// {"op": "matmul", "type", "n", "k", "rows", "bytes": of the weights, "flops", "seconds"}
void BenchMatMuls(const BenchOptions& options, const CudaQueue& queue);
// {"op": "attention", "type", "context", "rows", "bytes": of keys and values, "flops", "seconds"}
void BenchAttention(const BenchOptions& options, const CudaQueue& queue);
// {"op", "rows", "bytes": read and written, "seconds"}
void BenchSmallOps(const BenchOptions& options, const CudaQueue& queue);

// One line of JSON; seconds are null with options.smoke.
struct Result {
  const char* op;
  const char* type;
  size_t n, k, rows;
  double bytes, flops, seconds;
};
void Print(const BenchOptions& options, const Result& result);

}  // namespace millrace::kernels::cuda
