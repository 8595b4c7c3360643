// Where the threads of one process meet.
#pragma once

#include <atomic>
#include <cstdint>

#include "common/idle_cores.h"

namespace millrace {

// Thread: any. A thread that waits spins for a moment where a core would idle anyway, then sleeps.
class ShardBarrier {
 public:
  explicit ShardBarrier(uint32_t threads) : threads_(threads) {}

  // Returns true when `threads` threads have called it, as often as this one; false once it is closed. What
  // any of them wrote before, all see afterwards.
  bool Wait();
  void Close();
  bool closed() const { return (state_.load(std::memory_order_acquire) & kClosed) != 0; }

 private:
  static constexpr uint32_t kClosed = 1;
  static constexpr uint32_t kRound = 2;

  const uint32_t threads_;
  const IdleCores idle_cores_;
  // Threads that wait are told by a change of state_; each round adds kRound to it.
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> state_{0};
};

}  // namespace millrace
