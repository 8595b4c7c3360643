// The state of a Scheduler, and what its parts do with it.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "coordinator/scheduler/batch_policy.h"
#include "coordinator/scheduler/queue_drain.h"
#include "coordinator/scheduler/result_check.h"
#include "coordinator/scheduler/ring_timing.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/sequence.h"
#include "coordinator/scheduler/sequence_blocks.h"

namespace millrace {

struct Scheduler::Impl {
  struct InFlight {
    MicrobatchId id;
    std::vector<SequenceId> sequences;  // one for each segment; none of the canary
    std::vector<ExpectedResult> expected;
    BatchFeatures features;
    absl::Time planned;
    bool canary = false;
  };
  // Oldest first. Admission takes the oldest waiting, preemption the youngest running.
  using ByAge = std::map<SequenceOrder, Sequence*>;

  explicit Impl(SchedulerOptions o) : options(std::move(o)) {}

  uint64_t kv_tokens() const { return ring ? uint64_t{ring->num_blocks} * ring->block_tokens : 0; }
  uint32_t TokenLimit() const {
    if (!ring) return options.context_tokens;
    return static_cast<uint32_t>(std::min<uint64_t>(options.context_tokens, kv_tokens()));
  }
  Sequence* Find(SequenceId id) const {
    const auto it = live.find(id);
    return it == live.end() ? nullptr : it->second.get();
  }

  absl::Status Refusal(const SequenceRequest& request, absl::Time now) const;
  absl::Status RefusalByRoom(size_t prompt_tokens) const;
  void FitHeldToRing(absl::Time now);
  size_t num_waiting() const { return waiting.size() + held.size(); }
  void End(Sequence* sequence, const absl::Status& status, const SequenceEnd& end, uint32_t output_tokens,
           absl::Time now);
  void Fail(Sequence* sequence, const absl::Status& why, absl::Time now) {
    End(sequence, why, SequenceEnd(), sequence->output_tokens(), now);
  }
  void ApplyResult(SequenceResult result, absl::Time now);
  void ApplyToken(Sequence* sequence, SequenceResult result, absl::Time now);
  uint32_t Slots() const;
  BatchSnapshot Snapshot() const;
  void AddWaiting(BatchSnapshot* snapshot) const;
  void CountFreedBlocks(BatchSnapshot* snapshot) const;
  void OpenBatch();
  void PreemptYoungest();
  Sequence* AdmitOldest(absl::Time now);
  void CheckOrder() const;
  MicrobatchPlan BuildPlan(const std::vector<BatchPick>& picks, const std::vector<Sequence*>& by_index,
                           absl::Time now);

  const SchedulerOptions options;
  std::optional<RingShape> ring;
  RingTiming timing;
  SequenceBlocks blocks;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>> live;
  ByAge running;
  ByAge waiting;
  ByAge held;  // neither run nor wait; empty unless `holding`
  bool holding = false;
  std::set<std::pair<absl::Time, SequenceId>> deadlines;  // finite ones
  QueueDrain drain;
  std::deque<InFlight> in_flight;
  std::vector<SchedulerAction> actions;
  uint64_t next_microbatch = 1;
  uint64_t next_change = 0;  // of a sequence between arrived, running and preempted
  uint64_t next_ready_order = 0;
  bool prefill_turn = false;
  double decode_carry = 0;
  SchedulerLoad totals;
};

}  // namespace millrace
