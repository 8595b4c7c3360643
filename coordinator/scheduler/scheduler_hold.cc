// How sequences outlive a ring that is given up on purpose, and how a new ring is tried.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/error_reason.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_impl.h"

namespace millrace {

// Why a prompt can never run on this ring, or OK.
absl::Status Scheduler::Impl::RefusalByRoom(size_t prompt_tokens) const {
  if (!ring || prompt_tokens < kv_tokens()) return absl::OkStatus();
  return millrace::Refusal(
      absl::StatusCode::kResourceExhausted, "KV_CACHE_TOO_SMALL",
      absl::StrCat("the prompt has ", prompt_tokens, " tokens; with one more it must fit the KV cache of ",
                   kv_tokens(), " tokens: shorten it, or give the workers more KV memory"));
}

// They were checked against another ring, or against none.
void Scheduler::Impl::FitHeldToRing(absl::Time now) {
  for (auto it = held.begin(); it != held.end();) {
    Sequence* const sequence = (it++)->second;
    const absl::Status refusal = RefusalByRoom(sequence->prompt_tokens());
    if (refusal.ok()) {
      sequence->FitInto(TokenLimit());
    } else {
      Fail(sequence, refusal, now);
    }
  }
}

void Scheduler::Hold() {
  impl_->holding = true;
  auto& waiting = impl_->waiting;
  for (auto it = waiting.begin(); it != waiting.end();) {
    const auto next = std::next(it);
    if (!it->second->preempted()) impl_->held.insert(waiting.extract(it));
    it = next;
  }
}

// Each comes as if it had only now arrived: what was admitted meanwhile was not admitted past it.
void Scheduler::Release(const absl::Status& no_ring, absl::Time now) {
  MILLRACE_CHECK(!no_ring.ok());
  impl_->holding = false;
  auto& held = impl_->held;
  while (!held.empty() && !impl_->ring) impl_->Fail(held.begin()->second, no_ring, now);
  while (!held.empty()) {
    held.begin()->second->Rejoin(impl_->next_change++);
    impl_->waiting.insert(held.extract(held.begin()));
  }
}

bool Scheduler::holding() const {
  return impl_->holding;
}

// The block is not taken from the pool: stages run microbatches in order, so whatever is given that block
// later is written to it after this.
std::optional<MicrobatchPlan> Scheduler::PlanCanary(TokenId token, absl::Time now) {
  MILLRACE_CHECK(impl_->ring && impl_->next_microbatch == 1);
  if (impl_->ring->num_blocks == 0) return std::nullopt;
  MicrobatchPlan plan;
  plan.id = MicrobatchId(impl_->next_microbatch++);
  PlanSegment& segment = plan.segments.emplace_back();
  segment.token_ids = {token};
  segment.block_ids = {0};
  segment.sampling.emplace();
  segment.sampling->temperature = 0;
  Impl::InFlight record;
  record.id = plan.id;
  record.expected = ExpectedResults(plan);
  record.planned = now;
  record.canary = true;
  impl_->in_flight.push_back(std::move(record));
  return plan;
}

bool Scheduler::canary_in_flight() const {
  return !impl_->in_flight.empty() && impl_->in_flight.front().canary;
}

}  // namespace millrace
