#include "coordinator/cluster/drain_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace millrace {

void DrainState::OnDrainWorker(uint64_t call, WorkerId worker, absl::Duration wait, absl::Time now) {
  if (!worker.valid()) {
    actions_.push_back(AnswerDrain{call, true});
    return;
  }
  if (hold_ == 0) {
    hold_ = ++last_hold_;
    quiet_ = false;
    actions_.push_back(HoldRequests{hold_});
  }
  const absl::Time until = now + wait;
  absl::Time& goes_by = leaving_.try_emplace(worker, absl::InfinitePast()).first->second;
  goes_by = std::max(goes_by, (quiet_ ? now : until) + options_.leave_within);
  if (quiet_) {
    actions_.push_back(AnswerDrain{call, true});
  } else {
    calls_[call] = {worker, until};
  }
}

void DrainState::OnDrainAll(uint64_t call, absl::Duration wait, absl::Time now) {
  if (all_idle_) {
    actions_.push_back(AnswerDrain{call, true});
  } else {
    calls_[call] = {std::nullopt, now + wait};
  }
}

// Answers the calls about `worker`, or about all.
void DrainState::Answer(bool finished, const std::optional<WorkerId>& worker) {
  for (auto it = calls_.begin(); it != calls_.end();) {
    const auto next = std::next(it);
    if (it->second.worker == worker) {
      actions_.push_back(AnswerDrain{it->first, finished});
      calls_.erase(it);
    }
    it = next;
  }
}

void DrainState::OnQuiet(uint64_t number, absl::Time now) {
  if (hold_ == 0 || number != hold_) return;
  quiet_ = true;
  for (auto& [worker, goes_by] : leaving_) {
    goes_by = std::min(goes_by, now + options_.leave_within);
    Answer(true, worker);
  }
}

void DrainState::OnAllIdle() {
  all_idle_ = true;
  Answer(true, std::nullopt);
}

void DrainState::OnGone(WorkerId worker, absl::Time now) {
  if (leaving_.erase(worker) == 0) return;
  Answer(quiet_, worker);
  ring_due_ = now + options_.replace_within;
}

void DrainState::OnRingUp() {
  ring_due_ = absl::InfiniteFuture();
  ReleaseIfNobodyLeaves();
}

void DrainState::ReleaseIfNobodyLeaves() {
  if (hold_ == 0 || !leaving_.empty() || ring_due_ != absl::InfiniteFuture()) return;
  hold_ = 0;
  actions_.push_back(ReleaseRequests{});
}

void DrainState::Tick(absl::Time now) {
  for (auto it = calls_.begin(); it != calls_.end();) {
    const auto next = std::next(it);
    if (now >= it->second.until) {
      actions_.push_back(AnswerDrain{it->first, false});
      calls_.erase(it);
    }
    it = next;
  }
  for (auto it = leaving_.begin(); it != leaving_.end();) {
    const auto next = std::next(it);
    if (now >= it->second) leaving_.erase(it);
    it = next;
  }
  if (now >= ring_due_) ring_due_ = absl::InfiniteFuture();
  ReleaseIfNobodyLeaves();
}

absl::Time DrainState::NextTick() const {
  absl::Time next = ring_due_;
  for (const auto& [number, call] : calls_) next = std::min(next, call.until);
  for (const auto& [worker, goes_by] : leaving_) next = std::min(next, goes_by);
  return next;
}

std::vector<DrainAction> DrainState::TakeActions() {
  return std::exchange(actions_, {});
}

std::vector<WorkerId> DrainState::leaving() const {
  std::vector<WorkerId> workers;
  for (const auto& [worker, goes_by] : leaving_) workers.push_back(worker);
  return workers;
}

std::string DrainState::Detail() const {
  if (hold_ == 0) return "";
  if (leaving_.empty()) return "new requests are held until a worker takes the place of one that left";
  return absl::StrCat(
      "new requests are held, as worker ",
      absl::StrJoin(leaving_, ", ",
                    [](std::string* out, const auto& entry) { absl::StrAppend(out, entry.first.value()); }),
      quiet_ ? " may go" : " is to leave once the running ones have ended");
}

}  // namespace millrace
