#include "common/buffer_pool.h"

#include <algorithm>
#include <new>
#include <utility>

namespace millrace {
namespace {

constexpr std::align_val_t kAlignment{64};

void Free(PooledBuffer* buffer) {
  ::operator delete(buffer->data, kAlignment);
  delete buffer;
}

}  // namespace

struct BufferPool::Shelf {
  explicit Shelf(size_t max) : max_idle(max) { idle.reserve(max_idle + 1); }
  ~Shelf() {
    for (PooledBuffer* buffer : idle) Free(buffer);
  }

  PooledBuffer* Take(size_t size) {
    MutexLock lock(&mutex);
    for (size_t i = idle.size(); i-- > 0;) {
      if (idle[i]->capacity < size) continue;
      PooledBuffer* buffer = idle[i];
      idle.erase(idle.begin() + i);
      return buffer;
    }
    return nullptr;
  }

  // Of one buffer too many the smallest goes: a full shelf of small ones would be of no use to large
  // messages.
  void PutBack(PooledBuffer* buffer) {
    {
      MutexLock lock(&mutex);
      idle.push_back(buffer);
      if (idle.size() <= max_idle) return;
      const auto smallest = std::min_element(
          idle.begin(), idle.end(),
          [](const PooledBuffer* a, const PooledBuffer* b) { return a->capacity < b->capacity; });
      buffer = *smallest;
      idle.erase(smallest);
    }
    Free(buffer);
  }

  const size_t max_idle;
  Mutex mutex;
  std::vector<PooledBuffer*> idle ABSL_GUARDED_BY(mutex);
};

BufferPool::BufferPool(size_t max_idle) : shelf_(std::make_shared<Shelf>(max_idle)) {}

std::shared_ptr<PooledBuffer> BufferPool::Get(size_t size) {
  PooledBuffer* buffer = shelf_->Take(size);
  if (buffer == nullptr) {
    buffer = new PooledBuffer;
    buffer->capacity = (size + 63) / 64 * 64;
    buffer->data = static_cast<uint8_t*>(::operator new(buffer->capacity, kAlignment));
  }
  buffer->size = size;
  return std::shared_ptr<PooledBuffer>(buffer,
                                       [shelf = shelf_](PooledBuffer* done) { shelf->PutBack(done); });
}

}  // namespace millrace
