// Reused aligned memory for activations in transit, so that a step allocates nothing large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/mutex.h"

namespace millrace {

// `size` bytes are in use of memory that is 64-byte aligned and at least as large.
struct PooledBuffer {
  uint8_t* data = nullptr;
  size_t size = 0;
  size_t capacity = 0;

  float* floats() { return reinterpret_cast<float*>(data); }
  const float* floats() const { return reinterpret_cast<const float*>(data); }
  size_t num_floats() const { return size / sizeof(float); }
};

// Thread: any. Buffers find their way back when their last owner lets go, also after the pool itself is gone.
class BufferPool {
 public:
  // Keeps at most `max_idle` buffers for reuse.
  explicit BufferPool(size_t max_idle);

  // A buffer with `size` set; its content is undefined.
  std::shared_ptr<PooledBuffer> Get(size_t size);

 private:
  struct Shelf;
  std::shared_ptr<Shelf> shelf_;
};

}  // namespace millrace
