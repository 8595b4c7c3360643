#include "common/buffer_pool.h"

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
  explicit Shelf(size_t max) : max_idle(max) {}
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

  void PutBack(PooledBuffer* buffer) {
    {
      MutexLock lock(&mutex);
      if (idle.size() < max_idle) {
        idle.push_back(buffer);
        return;
      }
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
  return std::shared_ptr<PooledBuffer>(buffer, [shelf = shelf_](PooledBuffer* done) { shelf->PutBack(done); });
}

}  // namespace millrace
