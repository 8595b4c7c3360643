// What always holds between two calls of the scheduler.
#include <map>
#include <vector>

#include "common/check.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_impl.h"

namespace millrace {

// Nobody was admitted past an older one that waited, and who was preempted was the youngest. So a running
// sequence is older than each that waited when it was admitted, and than each that was preempted: those, too,
// waited when a later one was admitted.
void Scheduler::Impl::CheckOrder() const {
  std::map<uint64_t, const Sequence*> by_change;
  for (const auto& [order, sequence] : running) by_change.emplace(sequence->since(), sequence);
  for (const auto& [order, sequence] : waiting) by_change.emplace(sequence->since(), sequence);
  MILLRACE_CHECK(by_change.size() + held.size() == live.size());
  const Sequence* oldest_waiting = nullptr;  // of those that have waited since before the one looked at
  for (const auto& [change, sequence] : by_change) {
    if (sequence->running()) {
      MILLRACE_CHECK(oldest_waiting == nullptr || sequence->order() < oldest_waiting->order());
    } else if (oldest_waiting == nullptr || sequence->order() < oldest_waiting->order()) {
      oldest_waiting = sequence;
    }
    if (!sequence->running() && sequence->preempted()) {
      MILLRACE_CHECK(running.empty() || running.rbegin()->first < sequence->order());
    }
  }
}

void Scheduler::CheckInvariants() const {
  std::vector<Sequence*> running;
  for (const auto& [order, sequence] : impl_->running) {
    MILLRACE_CHECK(sequence->running() && sequence->order() == order);
    MILLRACE_CHECK(sequence->planned() > 0 && sequence->planned() <= sequence->tokens());
    running.push_back(sequence);
  }
  impl_->blocks.CheckInvariants(running);
  for (const auto& [order, sequence] : impl_->waiting) {
    MILLRACE_CHECK(!sequence->running() && sequence->order() == order);
    MILLRACE_CHECK(sequence->planned() == 0 && sequence->blocks().empty());
  }
  for (const auto& [order, sequence] : impl_->held) {
    MILLRACE_CHECK(!sequence->running() && !sequence->preempted() && sequence->order() == order);
    MILLRACE_CHECK(sequence->planned() == 0 && sequence->blocks().empty());
  }
  MILLRACE_CHECK(impl_->holding || impl_->held.empty());
  impl_->CheckOrder();
  MILLRACE_CHECK(impl_->running.size() <= impl_->options.max_running_sequences);
}

}  // namespace millrace
