// What the tests of the policy share: views of sequences, a snapshot, a cost.
#pragma once

#include <ostream>
#include <utility>
#include <vector>

#include "coordinator/scheduler/batch_policy.h"

namespace millrace {

inline bool operator==(const BatchPick& a, const BatchPick& b) {
  return a.index == b.index && a.rows == b.rows;
}
inline void PrintTo(const BatchPick& pick, std::ostream* out) {
  *out << "#" << pick.index << " x " << pick.rows;
}

namespace policy_test {

inline constexpr uint32_t kBlock = 16;

inline uint32_t BlocksFor(uint32_t tokens) {
  return (tokens + kBlock - 1) / kBlock;
}

// A running sequence whose next token can be computed.
inline SequenceView Ready(uint64_t ready_order = 0, uint32_t tokens = 20) {
  SequenceView view;
  view.tokens = tokens;
  view.planned = tokens - 1;
  view.freed_blocks = view.blocks = BlocksFor(view.planned);
  view.generating = true;
  view.ready_order = ready_order;
  return view;
}

// A running sequence whose token is in flight.
inline SequenceView Flying(uint32_t tokens = 20) {
  SequenceView view = Ready(0, tokens);
  view.planned = tokens;
  view.freed_blocks = view.blocks = BlocksFor(tokens);
  view.in_flight = true;
  return view;
}

inline SequenceView Prompt(uint32_t tokens, uint32_t planned = 0) {
  SequenceView view;
  view.tokens = tokens;
  view.planned = planned;
  view.freed_blocks = view.blocks = BlocksFor(planned);
  return view;
}

// 10 ms, 1 ms a row.
inline StageCost TestCost() {
  StageCost cost;
  cost.fixed = 9e-3;
  cost.rows = {{1, 1e-3}, {128, 128e-3}};
  return cost;
}

// Four stages, four slots, none in flight, blocks in plenty.
inline BatchSnapshot Snapshot(std::vector<SequenceView> running,
                              const std::vector<SequenceView>& waiting = {}) {
  BatchSnapshot s;
  s.max_rows = 128;
  s.num_stages = 4;
  s.slots = 4;
  s.max_running_sequences = 256;
  s.block_tokens = kBlock;
  s.num_blocks = 10000;
  s.free_blocks = 5000;
  s.num_running = running.size();
  s.sequences = std::move(running);
  s.sequences.insert(s.sequences.end(), waiting.begin(), waiting.end());
  return s;
}

inline uint32_t Rows(const BatchDecision& decision) {
  uint32_t rows = 0;
  for (const BatchPick& pick : decision.picks) rows += pick.rows;
  return rows;
}

}  // namespace policy_test
}  // namespace millrace
