// Working memory of a stage: allocated once, aligned for the kernels, with sizes that cannot overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace {

// Owns float32 values, aligned to 64 bytes and zero at first. Thread: the owner's.
class FloatBuffer {
 public:
  FloatBuffer() = default;
  // RESOURCE_EXHAUSTED, naming `what`: the product of `shape` overflows, or the memory is not to be had.
  static absl::StatusOr<FloatBuffer> Allocate(absl::string_view what, std::initializer_list<uint64_t> shape);

  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  size_t size() const { return size_; }
  uint64_t bytes() const { return uint64_t{size_} * sizeof(float); }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  FloatBuffer(float* memory, size_t size) : data_(memory), size_(size) {}

  std::unique_ptr<float, Free> data_;
  size_t size_ = 0;
};

}  // namespace millrace
