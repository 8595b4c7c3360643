// What goes into the next microbatch: a stateless function of a snapshot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/scheduler/cost_model.h"

namespace millrace {

// What the policy sees of one sequence.
struct SequenceView {
  uint32_t tokens = 0;   // known so far: prompt and generated
  uint32_t planned = 0;  // of these, how many were put into a microbatch since the sequence (re)started
  uint32_t blocks = 0;   // KV blocks held
  // Of a waiting one, `planned` positions in `blocks` blocks are those that it will find in the cache.
  uint32_t cached = 0;        // positions that it did not, or will not, compute
  uint32_t idle_blocks = 0;   // of a waiting one's blocks, those that count as free until it is admitted
  uint32_t freed_blocks = 0;  // of a running one's, those that it and the ones younger than it alone hold
  bool generating = false;    // at least one token was generated
  bool in_flight = false;     // a waiting one with something in flight may not restart yet
  uint64_t ready_order = 0;   // of decodes: the lower, the longer it has been ready

  uint32_t remaining() const { return tokens - planned; }
  bool decode_ready() const { return generating && remaining() == 1; }
  // Waits for its sampled token, or for the microbatch that samples the next.
  bool decoding() const { return remaining() == 0 || decode_ready(); }
};

struct BatchSnapshot {
  uint32_t max_rows = 0;
  uint32_t num_stages = 1;
  uint32_t slots = 1;      // microbatches that keep the pipeline full
  uint32_t in_flight = 0;  // microbatches; below slots
  uint32_t max_running_sequences = 0;
  uint32_t block_tokens = 1;
  uint32_t num_blocks = 0;
  uint32_t free_blocks = 0;
  bool prefill_turn = false;  // the last microbatch carried no prefill
  double decode_carry = 0;    // of the last decision
  // By stage, all known. None: a row costs 1 and nothing else does, so that budgets and shares are counts.
  absl::Span<const StageCostModel> costs;
  double inter_token_goal = 0;  // seconds; 0: none
  // Running ones, oldest first; then the first waiting ones, next first. A waiting one may be older than
  // running ones, if it came after them and is more urgent; they go on running all the same.
  std::vector<SequenceView> sequences;
  size_t num_running = 0;
};

struct BatchPick {
  size_t index = 0;  // into BatchSnapshot::sequences
  uint32_t rows = 0;
};

struct BatchDecision {
  std::vector<BatchPick> picks;  // decodes, then prefill chunks; none: nothing can run now
  size_t num_preempted = 0;      // first: the youngest so many running ones give up their blocks
  size_t num_admitted = 0;       // then: the first so many waiting ones run; each has a pick
  bool has_prefill = false;
  double decode_carry = 0;  // what the decodes fall short of their share, in usual decodes; -0.5 .. 0.5
};

// A prefill chunk is not made smaller than this, unless it ends its prompt, nothing more fits, or it makes a
// slot of decodes as long as the others.
inline constexpr uint32_t kMinChunkRows = 16;

// Every microbatch is to take the slowest stage about the same time (Agrawal et al., "Sarathi-Serve", OSDI
// 2024, and Hwang & Ahn, "Revisiting pipeline parallelism", OSDI 2026): unequal ones leave bubbles behind
// them on every stage.
//
// Decodes first: each slot gets an even share of the predicted time of all sequences that decode; those that
// have been ready for longest come first. What rounding to whole sequences leaves is carried to the next
// slot, so that slots which differ after some sequences ended even out (gLLM's rotating remainder, SC 2025,
// in time). Fewer where more slots are free than that would fill.
//
// Then prefill chunks, oldest first. The budget of a slot is the predicted time of max_rows prefill rows
// without context, at most inter_token_goal / slots; chunks get what the decodes leave of it, but at least a
// quarter (and a quarter of the rows is kept from decodes). A prompt is cut into equal times, so its later
// chunks are shorter as attention grows. If what is pending and can run is less than that, it is cut so that
// it makes about two chunks for each stage (one on a single stage). The rows of a microbatch never exceed
// max_rows.
//
// Blocks: a sequence that lacks one takes it from the youngest running sequence if that is younger, and else
// waits. So the oldest running one can always go on. A waiting one is admitted, strictly in order, when all
// of its known tokens and one more fit beside what running prefills still need and one block for each running
// sequence (at most an eighth of all blocks); that margin keeps a sequence just admitted from being preempted
// at once. Where one was preempted nothing is admitted, as it may be that one's turn.
//
// REQUIRES: each sequence alone fits into num_blocks. Cost: n log n in the ready decodes, linear in the
// rest.
BatchDecision DecideBatch(const BatchSnapshot& snapshot);

}  // namespace millrace
