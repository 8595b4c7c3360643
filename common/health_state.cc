#include "common/health_state.h"

#include <utility>

namespace millrace {

HealthState::HealthState(absl::Duration stuck_after, const Clock* clock)
    : stuck_after_(stuck_after), clock_(clock) {}

HealthState::Loop::Loop(HealthState* health, std::string name) : health_(health) {
  if (health_ == nullptr) return;
  const absl::Time now = health_->clock_->Now();
  MutexLock lock(&health_->mutex_);
  entry_ = health_->loops_.emplace(health_->loops_.end(), std::move(name), now);
}

HealthState::Loop::~Loop() {
  if (health_ == nullptr) return;
  MutexLock lock(&health_->mutex_);
  health_->loops_.erase(entry_);
}

void HealthState::Loop::Tick() {
  if (health_ == nullptr) return;
  const absl::Time now = health_->clock_->Now();
  MutexLock lock(&health_->mutex_);
  entry_->second = now;
}

void HealthState::SetStarted() {
  {
    MutexLock lock(&mutex_);
    started_ = true;
  }
  TellWatcher();
}

void HealthState::SetReady(bool ready) {
  {
    MutexLock lock(&mutex_);
    ready_ = ready;
  }
  TellWatcher();
}

void HealthState::SetDraining(bool draining) {
  {
    MutexLock lock(&mutex_);
    draining_ = draining;
  }
  TellWatcher();
}

bool HealthState::live() const {
  return StuckLoops().empty();
}

bool HealthState::started() const {
  MutexLock lock(&mutex_);
  return started_;
}

bool HealthState::ready() const {
  MutexLock lock(&mutex_);
  return ReadyLocked();
}

std::vector<std::string> HealthState::StuckLoops() const {
  const absl::Time now = clock_->Now();
  std::vector<std::string> stuck;
  MutexLock lock(&mutex_);
  for (const auto& [name, last] : loops_) {
    if (now - last > stuck_after_) stuck.push_back(name);
  }
  return stuck;
}

HealthState::Answer HealthState::Ask(absl::string_view service) const {
  bool serving = false;
  if (service == kLivenessService) {
    serving = live();
  } else if (service == kStartupService) {
    serving = started();
  } else if (service == kReadinessService || service.empty()) {
    serving = ready();
  } else {
    return Answer::kUnknownService;
  }
  return serving ? Answer::kServing : Answer::kNotServing;
}

void HealthState::OnReadyChange(std::function<void(bool)> watcher) {
  {
    MutexLock lock(&watcher_mutex_);
    watcher_ = std::move(watcher);
    told_ = false;
  }
  TellWatcher();
}

// The state is read under the watcher's lock, so that the last call always tells the last state.
void HealthState::TellWatcher() {
  MutexLock lock(&watcher_mutex_);
  const bool now = ready();
  if (!watcher_ || now == told_) return;
  told_ = now;
  watcher_(now);
}

}  // namespace millrace
