// What both kinds of collectives of CUDA shards have in common: memory of partial sums, adding them, and a
// note of what was last enqueued.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/cuda_queue.h"
#include "worker/device/device.h"

namespace millrace {

// Makes a device the calling thread's until the end of the scope.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  const absl::Status& status() const { return status_; }

 private:
  int previous_ = -1;
  absl::Status status_;
};

// [segments, stride] float32 in the memory of one device.
class PartialSums {
 public:
  // RESOURCE_EXHAUSTED: not so much memory.
  static absl::StatusOr<PartialSums> Allocate(int device, const CollectiveOptions& sizes);

  // Of segment 0.
  float* data() const { return reinterpret_cast<float*>(memory_.data()); }
  // Floats from segment to segment: max_rows * columns in whole 256 bytes.
  size_t stride() const { return stride_; }
  float* Segment(uint32_t segment) const { return data() + segment * stride_; }
  uint64_t bytes() const { return memory_.bytes(); }

 private:
  DeviceMemory memory_;
  size_t stride_ = 0;
};

// Adds floats [begin, end) of `partials`, in their order, to those of `out`: part of `count` floats.
struct AddFloats {
  absl::Span<const float* const> partials;
  float* out = nullptr;
  size_t count = 0;
  size_t begin = 0;
  size_t end = 0;
};
void Enqueue(const kernels::cuda::CudaQueue& queue, const AddFloats& add);

// Thread: one notes, any reads.
class EnqueuedSums {
 public:
  void Note(const Collective::Sum& sum) {
    rows_.store(sum.rows, std::memory_order_relaxed);
    columns_.store(sum.columns, std::memory_order_relaxed);
    count_.fetch_add(1, std::memory_order_release);
  }
  // Such as "sum 17 of 8 x 2048 floats"; empty before the first.
  std::string Text() const;

 private:
  std::atomic<uint64_t> count_{0};
  std::atomic<uint64_t> rows_{0};
  std::atomic<uint64_t> columns_{0};
};

}  // namespace millrace
