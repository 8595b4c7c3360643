// The hand-off of values between threads: bounded, closeable, drained after close.
#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/idle_cores.h"
#include "common/mutex.h"

namespace millrace {

// Thread: any. Holds at most `capacity` items. After Close, pushes fail, what was pushed can still be popped,
// and every waiting thread wakes.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}
  BoundedQueue(const BoundedQueue&) = delete;
  BoundedQueue& operator=(const BoundedQueue&) = delete;

  // Waits for room. False (and `item` is lost) once closed.
  bool Push(T item) {
    MutexLock lock(&mutex_);
    while (items_.size() >= capacity_ && !closed_) not_full_.Wait(&mutex_);
    return PushLocked(item);
  }

  // Never waits. False when full or closed; `item` is moved from only on success.
  bool TryPush(T& item) {
    MutexLock lock(&mutex_);
    if (items_.size() >= capacity_) return false;
    return PushLocked(item);
  }
  bool TryPush(T&& item) { return TryPush(item); }

  // Looks for an item, or for Close, without sleeping, at most `limit`. For a thread that has a core to spare
  // (common/idle_cores.h) just before it waits.
  void SpinForItem(absl::Duration limit) const {
    const absl::Time deadline = Clock::Steady().Now() + limit;
    constexpr int kLooksAtOnce = 64;
    while (Clock::Steady().Now() < deadline) {
      for (int i = 0; i < kLooksAtOnce; ++i) {
        if (ready_.load(std::memory_order_relaxed)) return;
        SpinPause();
      }
    }
  }

  // Waits for an item, at most `timeout`. Empty on timeout, or when closed and drained.
  std::optional<T> Pop(absl::Duration timeout = absl::InfiniteDuration()) {
    MutexLock lock(&mutex_);
    WaitForItem(timeout);
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    ready_.store(!items_.empty() || closed_, std::memory_order_relaxed);
    not_full_.NotifyOne();
    return item;
  }

  // Waits as Pop does, then takes everything that is there, oldest first.
  std::vector<T> PopAll(absl::Duration timeout = absl::InfiniteDuration()) {
    MutexLock lock(&mutex_);
    WaitForItem(timeout);
    std::vector<T> all(std::make_move_iterator(items_.begin()), std::make_move_iterator(items_.end()));
    items_.clear();
    ready_.store(closed_, std::memory_order_relaxed);
    not_full_.NotifyAll();
    return all;
  }

  void Close() {
    MutexLock lock(&mutex_);
    closed_ = true;
    ready_.store(true, std::memory_order_relaxed);
    not_empty_.NotifyAll();
    not_full_.NotifyAll();
  }

  bool closed() const {
    MutexLock lock(&mutex_);
    return closed_;
  }
  size_t size() const {
    MutexLock lock(&mutex_);
    return items_.size();
  }
  size_t capacity() const { return capacity_; }

 private:
  bool PushLocked(T& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (closed_) return false;
    items_.push_back(std::move(item));
    ready_.store(true, std::memory_order_relaxed);
    not_empty_.NotifyOne();
    return true;
  }

  void WaitForItem(absl::Duration timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Time deadline =
        timeout == absl::InfiniteDuration() ? absl::InfiniteFuture() : Clock::Steady().Now() + timeout;
    while (items_.empty() && !closed_) {
      const absl::Duration left =
          deadline == absl::InfiniteFuture() ? absl::InfiniteDuration() : deadline - Clock::Steady().Now();
      if (left <= absl::ZeroDuration() || !not_empty_.WaitFor(&mutex_, left)) break;
    }
  }

  const size_t capacity_;
  mutable Mutex mutex_;
  CondVar not_empty_;
  CondVar not_full_;
  std::deque<T> items_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  // There is an item, or the queue is closed. Written under the lock; a reader that spins needs no order.
  std::atomic<bool> ready_{false};
};

}  // namespace millrace
