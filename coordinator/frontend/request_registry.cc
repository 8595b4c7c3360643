#include "coordinator/frontend/request_registry.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "coordinator/frontend/error_detail.h"
#include "coordinator/frontend/generate_stream.h"

namespace millrace {
namespace {

// Behind one name there may be others that take it at once; nobody else is to call in a busy loop.
constexpr absl::Duration kDrainPause = absl::Seconds(1);

}  // namespace

absl::Status RequestRegistry::Register(const std::string& request_id,
                                       std::shared_ptr<GenerateStream> stream) {
  MutexLock lock(&mutex_);
  if (state_ == State::kDraining) {
    return RetryAfter(RetryLater(absl::StatusCode::kUnavailable, "DRAINING",
                                 "the server is draining: it finishes its requests and takes no new ones"),
                      kDrainPause);
  }
  if (state_ == State::kStopping) {
    return RetryLater(absl::StatusCode::kUnavailable, "SHUTTING_DOWN",
                      "the server is stopping and takes no new requests; retry with back-off");
  }
  if (!live_.try_emplace(request_id, std::move(stream)).second) {
    return RetryLater(absl::StatusCode::kAlreadyExists, "REQUEST_ID_IN_USE",
                      absl::StrCat("request_id ", Quoted(request_id),
                                   " is that of a live request; wait for its end or choose another"));
  }
  return absl::OkStatus();
}

void RequestRegistry::Remove(const std::string& request_id) {
  std::shared_ptr<GenerateStream> removed;  // outlives the lock
  bool idle = false;
  {
    MutexLock lock(&mutex_);
    const auto it = live_.find(request_id);
    if (it == live_.end()) return;
    removed = std::move(it->second);
    live_.erase(it);
    idle = LeaveLocked();
  }
  if (idle && on_idle_) on_idle_();
}

bool RequestRegistry::LeaveLocked() {
  if (!IdleLocked()) return false;
  changed_.NotifyAll();
  if (state_ == State::kOpen || idle_told_) return false;
  return idle_told_ = true;
}

std::vector<std::shared_ptr<GenerateStream>> RequestRegistry::Find(
    absl::Span<const std::string* const> request_ids) const {
  std::vector<std::shared_ptr<GenerateStream>> found;
  absl::flat_hash_set<absl::string_view> seen;
  MutexLock lock(&mutex_);
  for (const std::string* id : request_ids) {
    const auto it = live_.find(*id);
    if (it != live_.end() && seen.insert(*id).second) found.push_back(it->second);
  }
  return found;
}

std::vector<std::shared_ptr<GenerateStream>> RequestRegistry::All() const {
  std::vector<std::shared_ptr<GenerateStream>> all;
  MutexLock lock(&mutex_);
  all.reserve(live_.size());
  for (const auto& [id, stream] : live_) all.push_back(stream);
  return all;
}

void RequestRegistry::StreamOpened() {
  MutexLock lock(&mutex_);
  ++open_streams_;
}

void RequestRegistry::StreamClosed() {
  bool idle = false;
  {
    MutexLock lock(&mutex_);
    --open_streams_;
    idle = LeaveLocked();
  }
  if (idle && on_idle_) on_idle_();
}

void RequestRegistry::Close(State state) {
  bool idle = false;
  {
    MutexLock lock(&mutex_);
    state_ = std::max(state_, state);
    idle = LeaveLocked();
  }
  if (idle && on_idle_) on_idle_();
}

RequestRegistry::State RequestRegistry::state() const {
  MutexLock lock(&mutex_);
  return state_;
}

bool RequestRegistry::WaitIdle(absl::Duration timeout) const {
  const absl::Time deadline = Clock::Steady().Now() + timeout;
  MutexLock lock(&mutex_);
  while (!IdleLocked()) {
    const absl::Duration left = deadline - Clock::Steady().Now();
    if (left <= absl::ZeroDuration()) return false;
    changed_.WaitFor(&mutex_, left);
  }
  return true;
}

size_t RequestRegistry::live() const {
  MutexLock lock(&mutex_);
  return live_.size();
}

}  // namespace millrace
