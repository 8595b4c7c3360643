// Which requests are live, and whether anything of them is left.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/mutex.h"

namespace millrace {

class GenerateStream;

// Thread: any. A request is live from Register to Remove; a stream is open from StreamOpened until its gRPC
// call is done, which comes later.
class RequestRegistry {
 public:
  enum class State { kOpen, kDraining, kStopping };

  // `on_idle` is called once: nothing is registered from now on, and nothing is left. Thread: any. Must not
  // wait.
  explicit RequestRegistry(std::function<void()> on_idle = {}) : on_idle_(std::move(on_idle)) {}

  // ALREADY_EXISTS REQUEST_ID_IN_USE; UNAVAILABLE DRAINING, with a pause to make, after Close(kDraining);
  // UNAVAILABLE SHUTTING_DOWN after Close(kStopping).
  absl::Status Register(const std::string& request_id, std::shared_ptr<GenerateStream> stream);
  void Remove(const std::string& request_id);

  // Those of `request_ids` that are live, each once.
  std::vector<std::shared_ptr<GenerateStream>> Find(absl::Span<const std::string* const> request_ids) const;
  std::vector<std::shared_ptr<GenerateStream>> All() const;

  void StreamOpened();
  void StreamClosed();

  // Nothing is registered from now on. A state that was left does not come back.
  void Close(State state);
  State state() const;

  // Waits until no request is live and no stream open. False if that took longer than `timeout`.
  bool WaitIdle(absl::Duration timeout) const;

  size_t live() const;

 private:
  // Whether on_idle_ is to be called, after the lock.
  bool LeaveLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IdleLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return live_.empty() && open_streams_ == 0;
  }

  const std::function<void()> on_idle_;
  mutable Mutex mutex_;
  mutable CondVar changed_;
  absl::flat_hash_map<std::string, std::shared_ptr<GenerateStream>> live_ ABSL_GUARDED_BY(mutex_);
  size_t open_streams_ ABSL_GUARDED_BY(mutex_) = 0;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kOpen;
  bool idle_told_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace millrace
