#include "worker/device/cpu/shard_barrier.h"

#include "absl/time/time.h"
#include "common/clock.h"

namespace millrace {
namespace {

constexpr int kPausesPerLook = 64;
// Longer than the shards of a layer usually differ, and than waking one takes.
constexpr absl::Duration kSpin = absl::Microseconds(200);

}  // namespace

bool ShardBarrier::Wait() {
  const uint32_t state = state_.load(std::memory_order_acquire);
  if ((state & kClosed) != 0) return false;
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    // Nobody is on the way to the next round before state_ changes.
    arrived_.store(0, std::memory_order_relaxed);
    state_.fetch_add(kRound, std::memory_order_acq_rel);
    state_.notify_all();
    return !closed();
  }
  const auto changed = [&] { return state_.load(std::memory_order_acquire) != state; };
  for (int i = 0; i < kPausesPerLook && !changed(); ++i) SpinPause();
  if (!changed() && idle_cores_.MaySpin()) {
    const int64_t end = SteadyNanos() + absl::ToInt64Nanoseconds(kSpin);
    while (!changed() && SteadyNanos() < end) {
      for (int i = 0; i < kPausesPerLook && !changed(); ++i) SpinPause();
    }
  }
  while (!changed()) state_.wait(state, std::memory_order_acquire);
  return !closed();
}

void ShardBarrier::Close() {
  state_.fetch_or(kClosed, std::memory_order_acq_rel);
  state_.notify_all();
}

}  // namespace millrace
