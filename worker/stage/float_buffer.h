// Working memory of a stage: allocated once, aligned for the kernels, with sizes that cannot overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/device/device.h"

namespace millrace {

// Owns float32 values, aligned to 64 bytes and zero at first. Thread: the owner's.
class FloatBuffer {
 public:
  FloatBuffer() = default;
  // In host memory. RESOURCE_EXHAUSTED, naming `what`: the product of `shape` overflows, or the memory is not
  // to be had.
  static absl::StatusOr<FloatBuffer> Allocate(absl::string_view what, std::initializer_list<uint64_t> shape);
  // In the device's memory, likewise.
  static absl::StatusOr<FloatBuffer> Allocate(Device& device, absl::string_view what,
                                              std::initializer_list<uint64_t> shape);
  // In memory that the device copies from and to, likewise.
  static absl::StatusOr<FloatBuffer> AllocateStaging(Device& device, absl::string_view what,
                                                     std::initializer_list<uint64_t> shape);

  float* data() { return reinterpret_cast<float*>(memory_.data()); }
  const float* data() const { return reinterpret_cast<const float*>(memory_.data()); }
  size_t size() const { return size_; }
  uint64_t bytes() const { return uint64_t{size_} * sizeof(float); }

 private:
  FloatBuffer(DeviceMemory memory, uint64_t bytes)
      : memory_(std::move(memory)), size_(bytes / sizeof(float)) {}

  DeviceMemory memory_;
  size_t size_ = 0;
};

}  // namespace millrace
