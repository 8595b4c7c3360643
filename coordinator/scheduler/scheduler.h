// Decides what runs next: a state machine without I/O, clock or threads. Events go in as calls with the time
// they happened at; plans and actions come out. The same calls in the same order give the same plans. What
// goes into a microbatch is DecideBatch's choice (batch_policy.h).
//
// KV blocks given up, by a sequence that ended or was preempted, are free at once, even with something of it
// in flight: every stage runs microbatches in the order of their ids, so what is in flight has been read and
// written on each stage before a later microbatch, the only kind that the blocks can be given to, is run
// there.
//
// Prefix cache: blocks are named by their content (block_hash.h) as soon as a microbatch that fills them is
// planned; for the same reason, one that is planned later may read them. A sequence starts behind the blocks
// it finds, and computes at least its last known token. Where two computed the same block, the later gives
// its own back. Blocks that nobody holds stay until their place is needed, those unused for longest first.
//
// A preempted sequence keeps its tokens and waits in its place. What is in flight of it still counts; once
// that has landed it may start again, by prefilling everything known. Nothing is reported twice.
//
// Order: sequences are older or younger by virtual arrival, the time of arrival plus priority times
// kPriorityUnit. The oldest waiting one is admitted next, never one past it; who runs goes on running,
// however urgent those are that arrive; when blocks run out the youngest running one is preempted. Hence
// - something always runs: the oldest running sequence can take the blocks of all others, and fits alone;
// where
//   none runs, the oldest waiting one finds all blocks free (Add refuses what does not fit), as soon as what
//   is in flight of it has landed.
// - nobody starves: running sequences end, as their lengths are bounded, and then the oldest waiting one is
//   admitted before any other. Who arrives 2 * kMaxPriority * kPriorityUnit after a sequence is younger than
//   it, so that at most those that came before then are admitted before it, or preempt it once it runs.
//
// A planned change of the ring: Hold keeps back all that has not begun, what arrives too; when nothing is
// left of what has begun, the ring may go, and Release lets the others wait again, on the next ring.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/generation.h"
#include "common/ids.h"
#include "coordinator/scheduler/block_hash.h"
#include "coordinator/scheduler/microbatch_plan.h"
#include "coordinator/scheduler/stage_cost.h"

namespace millrace {

struct SchedulerOptions {
  uint32_t context_tokens = 0;            // of the model
  uint32_t max_running_sequences = 256;   // hold KV blocks; at least 1
  uint32_t max_waiting_sequences = 1024;  // at least 1; beyond: RESOURCE_EXHAUSTED
  uint32_t max_rows = 128;  // of one microbatch, decodes and prefill chunks together; at least 1
  // What prefill chunks may stretch the time between two tokens of a sequence to, by predicted times. A
  // sequence that rounding leaves to the next slot waits a slot longer. Zero: no goal.
  absl::Duration inter_token_goal = absl::ZeroDuration();
  // For comparisons only: what waits when nothing runs is admitted together, as far as it fits; nothing joins
  // until the longest of it has ended.
  bool static_batching = false;
  std::vector<TokenId> end_tokens;  // of the model
  bool prefix_cache = true;         // keep KV blocks for sequences that begin the same
  BlockHashKey block_hash_key;      // random, where prompts are not to be trusted
};

// What a complete pipeline offers. KV room is the minimum over its stages.
struct RingShape {
  uint32_t num_stages = 1;
  uint32_t max_in_flight = 2;  // the most microbatches that the ring has room for; fewer than num_stages
                               // leave stages idle
  uint32_t num_blocks = 0;     // KV blocks
  uint32_t block_tokens = 16;
  // What is known before anything has run; it is corrected by what stages report.
  std::vector<StageCost> stage_costs = {};  // by stage; empty: unknown
  double hop_seconds = 0;  // mean over the p hops of a round, the return included; 0: unknown
};

struct SchedulerLoad {
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint32_t held = 0;                                           // of those that wait
  uint32_t begun() const { return running + waiting - held; }  // only while holding: preempted ones wait, too
  uint32_t in_flight = 0;
  uint32_t blocks_total = 0;
  uint32_t blocks_used = 0;
  uint32_t blocks_cached = 0;  // of the others, those that can be found by a sequence that begins the same
  uint32_t block_tokens = 0;
  // Microbatches that keep the pipeline full, at most max_in_flight; 0: no ring. Fewer are in flight if fewer
  // sequences can run.
  uint32_t slots = 0;
  double hop_seconds = 0;  // measured mean, the return included; 0: unknown
  // By stage: how far its predicted times are off, as a share of the measured ones (StageCostModel::error);
  // empty: no ring, or nothing measured yet.
  std::vector<double> cost_errors;
  // Totals since construction.
  uint64_t prompt_tokens = 0;  // of sequences that came to their first token
  uint64_t output_tokens = 0;
  uint64_t finished = 0;  // with OK
  uint64_t failed = 0;    // with an error, refused ones included
  uint64_t preemptions = 0;
  // Tokens of sequences that were looked up in the prefix cache when first admitted, and of these, found.
  uint64_t prefix_cache_queries = 0;
  uint64_t prefix_cache_hits = 0;
};

// Thread: engine.
class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);
  ~Scheduler();

  // A ring is there: sequences may run. All KV blocks are free; microbatch ids begin at 1. Held sequences
  // that cannot fit its KV cache end as Add would end them. REQUIRES: no ring, or OnRingLost since.
  void OnRingReady(const RingShape& shape, absl::Time now);

  // The ring is gone: every live sequence, running or waiting, ends with `why`, but for those that are held.
  // Results of its microbatches must not be passed in any more.
  void OnRingLost(const absl::Status& why, absl::Time now);

  // Keeps back every sequence that has not begun, and each that arrives from now on, with or without a ring.
  // They count as waiting, and deadlines hold. What has begun goes on, preempted ones too. No effect while
  // holding.
  void Hold();
  // Held sequences wait from now on, in the order of their arrival; without a ring they end with `no_ring`.
  // REQUIRES: `no_ring` is not OK.
  void Release(const absl::Status& no_ring, absl::Time now);
  bool holding() const;

  // A microbatch of no sequence: `token` alone, and one to be sampled after it. It shows that the ring turns,
  // and leaves no trace in prefix cache, load or learnt times. Nothing if the ring has no KV block. REQUIRES:
  // a ring, on which nothing has been planned yet.
  std::optional<MicrobatchPlan> PlanCanary(TokenId token, absl::Time now);
  bool canary_in_flight() const;

  // A request arrives. It may end at once: UNAVAILABLE (no ring, and not holding), RESOURCE_EXHAUSTED
  // (QUEUE_FULL, to be retried after the pause that the status names; or KV_CACHE_TOO_SMALL, it can never
  // fit: not to be retried), INVALID_ARGUMENT (prompt empty, or of context_tokens or more),
  // DEADLINE_EXCEEDED. REQUIRES: the id was never used before.
  void Add(SequenceRequest request, absl::Time now);

  // Ends a live sequence with `why` now; its blocks are free. Unknown ids are ignored. REQUIRES: `why` is not
  // OK.
  void Cancel(SequenceId id, const absl::Status& why, absl::Time now);

  // A stop string matched at the `output_tokens`-th generated token: the sequence ends with kStopSequence and
  // that count, tokens generated since are dropped. Unknown (already ended) ids are ignored. More than were
  // generated counts as all.
  void StopAt(SequenceId id, uint32_t output_tokens, absl::Time now);

  // A microbatch came back: one result for each segment that asked for a token or for prompt log
  // probabilities, in the order of the segments; microbatches in the order of their ids. Results of ended
  // sequences are dropped. INTERNAL if results do not fit the plan (a worker's fault; the ring should be
  // given up), in which case nothing was applied.
  absl::Status OnResult(MicrobatchId id, std::vector<SequenceResult> results, absl::Time now);

  // What the stages stamped on a microbatch that came back `now`, one entry a stage: slots and costs are
  // learnt from it. Comes before that microbatch's OnResult; an id that is not in flight, another number of
  // stages or times that cannot be are ignored.
  void OnStageTimes(MicrobatchId id, absl::Span<const StageTimes> stages, absl::Time now);

  // Ends sequences whose deadline has passed, with DEADLINE_EXCEEDED.
  void Tick(absl::Time now);
  absl::Time NextDeadline() const;  // InfiniteFuture if none

  // The next microbatch to send, or nothing if the window is full or nothing can run. Call until empty.
  std::optional<MicrobatchPlan> PlanNext(absl::Time now);

  // What happened to sequences since the last call, in order.
  std::vector<SchedulerAction> TakeActions();

  SchedulerLoad load() const;
  // How long one who finds the queue full should wait before trying again (queue_drain.h).
  absl::Duration RetryAfter(absl::Time now) const;
  bool idle() const;  // no live sequence and nothing in flight

  // For tests: CHECKs that every block is held by the running sequences that have it in their tables, and
  // that the books agree. Linear in blocks and sequences.
  void CheckInvariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
