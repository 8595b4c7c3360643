// Where the ops of one device are enqueued, and what they need to know of it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace millrace::kernels::cuda {

class CublasProducts;

struct DeviceTraits {
  int device = 0;               // ordinal, as the runtime counts
  int capability = 0;           // 10 * major + minor: 80, 90, 100
  size_t max_shared_bytes = 0;  // cudaDevAttrMaxSharedMemoryPerBlockOptin: 99, 163 or 227 KB
  int multiprocessors = 0;
};

// INVALID_ARGUMENT: no such device. FAILED_PRECONDITION: the driver, or the device, does not serve; says why.
absl::Status ReadTraits(int device, DeviceTraits* traits);

// Thread: the shard's. The first error that any call gave is kept, with what was called; later work is
// enqueued all the same, and its results mean nothing.
class CudaQueue {
 public:
  CudaQueue(cudaStream_t stream, const DeviceTraits& traits) : stream_(stream), traits_(traits) {}

  cudaStream_t stream() const { return stream_; }
  const DeviceTraits& traits() const { return traits_; }

  // `what` is a literal such as "launch of paged attention".
  void Check(cudaError_t error, const char* what) const;
  // The same of what is no error of the runtime.
  void Fail(absl::string_view what, absl::string_view why) const;
  const absl::Status& status() const { return status_; }

  // What products with 16-bit weights go through where it serves (cublas_lt.h); null: nothing but our own
  // kernels. Outlives the queue's use.
  CublasProducts* cublas() const { return cublas_; }
  void UseCublas(CublasProducts* products) { cublas_ = products; }

 private:
  const cudaStream_t stream_;
  const DeviceTraits traits_;
  mutable absl::Status status_;
  CublasProducts* cublas_ = nullptr;
};

}  // namespace millrace::kernels::cuda
