// Decides what runs next: a state machine without I/O, clock or threads. Events go in as calls with the time they
// happened at; plans and actions come out. The same calls in the same order give the same plans.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/generation.h"
#include "common/ids.h"
#include "coordinator/scheduler/microbatch_plan.h"

namespace millrace {

struct SchedulerOptions {
  uint32_t context_tokens = 0;              // of the model
  uint32_t max_running_sequences = 256;     // hold KV blocks
  uint32_t max_waiting_sequences = 1024;    // beyond: RESOURCE_EXHAUSTED
  uint32_t max_rows = 128;                  // of one microbatch: decodes and prefill chunks together
  std::vector<TokenId> end_tokens;          // of the model
};

// What a complete pipeline offers. KV room is the minimum over its stages.
struct RingShape {
  uint32_t num_stages = 1;
  uint32_t max_in_flight = 2;  // microbatches; at least num_stages
  uint32_t num_blocks = 0;     // KV blocks
  uint32_t block_tokens = 16;
};

struct SchedulerLoad {
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint32_t in_flight = 0;
  uint32_t blocks_total = 0;
  uint32_t blocks_used = 0;
  uint32_t block_tokens = 0;
  uint64_t prompt_tokens = 0;     // totals since construction
  uint64_t output_tokens = 0;
  uint64_t finished = 0;
  uint64_t failed = 0;
  uint64_t preemptions = 0;
};

// Thread: engine.
class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);
  ~Scheduler();

  // A ring is there: sequences may run. All KV blocks are free; microbatch ids begin at 1.
  // REQUIRES: no ring, or OnRingLost since.
  void OnRingReady(const RingShape& shape, absl::Time now);

  // The ring is gone: every live sequence, running or waiting, ends with `why`. Results of its microbatches must not be
  // passed in any more.
  void OnRingLost(const absl::Status& why, absl::Time now);

  // A request arrives. It may end at once: UNAVAILABLE (no ring), RESOURCE_EXHAUSTED (queue full, or it can never fit into
  // the KV cache), INVALID_ARGUMENT (prompt of context_tokens or more). REQUIRES: the id was never used before.
  void Add(SequenceRequest request, absl::Time now);

  // Ends a live sequence with `why` now; its blocks are free once nothing of it is in flight. Unknown ids are ignored.
  void Cancel(SequenceId id, const absl::Status& why, absl::Time now);

  // A stop string matched at the `output_tokens`-th generated token: the sequence ends with kStopSequence and that count,
  // tokens generated since are dropped. Unknown (already ended) ids are ignored.
  void StopAt(SequenceId id, uint32_t output_tokens, absl::Time now);

  // A microbatch came back. Results of ended sequences are dropped. INTERNAL if results do not fit the plan (a
  // worker's fault; the ring should be given up), in which case nothing was applied.
  absl::Status OnResult(MicrobatchId id, std::vector<SequenceResult> results, absl::Time now);

  // Ends sequences whose deadline has passed, with DEADLINE_EXCEEDED.
  void Tick(absl::Time now);
  absl::Time NextDeadline() const;  // InfiniteFuture if none

  // The next microbatch to send, or nothing if the window is full or nothing can run. Call until empty.
  std::optional<MicrobatchPlan> PlanNext(absl::Time now);

  // What happened to sequences since the last call, in order.
  std::vector<SchedulerAction> TakeActions();

  SchedulerLoad load() const;
  bool idle() const;  // no live sequence and nothing in flight

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
