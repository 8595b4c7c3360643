#include "worker/device/cuda/partial_sums.h"

#include <cuda_runtime.h>

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/options.h"
#include "kernels/cuda/cuda_ops.h"

namespace millrace {
namespace {

constexpr size_t kAlignmentFloats = 64;

absl::Status CudaError(int device, const char* what, cudaError_t error) {
  const std::string text = absl::StrCat("CUDA device ", device, ": ", what, ": ", cudaGetErrorName(error),
                                        ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text) : absl::InternalError(text);
}

}  // namespace

DeviceScope::DeviceScope(int device) {
  cudaError_t error = cudaGetDevice(&previous_);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error != cudaSuccess) status_ = CudaError(device, "choosing the device", error);
}

DeviceScope::~DeviceScope() {
  // A device that was lost meanwhile is told of by the next call that matters.
  if (previous_ >= 0) (void)cudaSetDevice(previous_);
}

absl::StatusOr<PartialSums> PartialSums::Allocate(int device, const CollectiveOptions& sizes) {
  // Kernels count in 32 bits; so much cannot be had anyway.
  if (sizes.max_rows != 0 && sizes.columns > std::numeric_limits<uint32_t>::max() / sizes.max_rows) {
    return absl::ResourceExhaustedError(absl::StrCat("partial sums of ", sizes.max_rows, " x ", sizes.columns,
                                                     " floats do not fit the memory"));
  }
  const DeviceScope scope(device);
  if (!scope.status().ok()) return scope.status();
  PartialSums sums;
  const size_t floats = size_t{sizes.max_rows} * sizes.columns;
  sums.stride_ = (floats + kAlignmentFloats - 1) / kAlignmentFloats * kAlignmentFloats;
  const uint64_t bytes = sizes.segments * sums.stride_ * sizeof(float);
  void* data = nullptr;
  if (const cudaError_t error = cudaMalloc(&data, bytes); error != cudaSuccess) {
    // Otherwise the next launch would report it again.
    (void)cudaGetLastError();
    return CudaError(device, absl::StrCat("partial sums of the shards, ", FormatBytes(bytes)).c_str(), error);
  }
  sums.memory_ = DeviceMemory(static_cast<uint8_t*>(data), bytes, [](uint8_t* memory) {
    // Fails only where the device is lost, and all its memory with it.
    (void)cudaFree(memory);
  });
  return sums;
}

void Enqueue(const kernels::cuda::CudaQueue& queue, const AddFloats& add) {
  if (add.begin == add.end) return;
  kernels::AddPartialsArgs args;
  args.partials = add.partials;
  args.out = add.out;
  args.rows = 1;
  args.columns = add.count;
  args.begin = add.begin;
  args.end = add.end;
  kernels::cuda::AddPartials(queue, args);
}

std::string EnqueuedSums::Text() const {
  const uint64_t count = count_.load(std::memory_order_acquire);
  if (count == 0) return "";
  return absl::StrCat("sum ", count, " of ", rows_.load(std::memory_order_relaxed), " x ",
                      columns_.load(std::memory_order_relaxed), " floats");
}

}  // namespace millrace
