// The running state of one request: its tokens, how far they are planned, its KV blocks, and when what
// happened.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "coordinator/scheduler/block_hash.h"
#include "coordinator/scheduler/microbatch_plan.h"

namespace millrace {

struct SequenceEnd {
  FinishReason reason = FinishReason::kLength;
  std::optional<TokenId> matched_token;
};

// Whose turn it is: by virtual arrival, and by order of arrival where that is equal. Less is older.
using SequenceOrder = std::pair<absl::Time, uint64_t>;

// Thread: engine. A live sequence waits or runs; it holds blocks only while it runs. Positions 0 .. planned()
// - 1 are, or will be once the microbatches in flight have passed, in the KV cache.
class Sequence {
 public:
  // `max_tokens`: of the request, capped. `change`: see since(); it grows with each arrival.
  Sequence(SequenceRequest request, uint32_t max_tokens, uint64_t change, absl::Time now);

  SequenceId id() const { return request_.id; }
  const SequenceOrder& order() const { return order_; }
  absl::Time deadline() const { return request_.deadline; }
  uint32_t tokens() const { return static_cast<uint32_t>(tokens_.size()); }
  uint32_t prompt_tokens() const { return prompt_tokens_; }
  uint32_t output_tokens() const { return tokens() - prompt_tokens_; }
  uint32_t planned() const { return planned_; }
  uint32_t in_flight() const { return in_flight_; }
  uint64_t ready_order() const { return ready_order_; }
  bool running() const { return running_; }
  // Of all arrivals, admissions and preemptions, the number of the last one of this sequence.
  uint64_t since() const { return since_; }
  bool preempted() const { return preempted_; }  // at least once
  const std::vector<BlockId>& blocks() const { return blocks_; }
  // For the pool to fill, to exchange and to empty.
  std::vector<BlockId>* mutable_blocks() { return &blocks_; }

  // How many blocks of its tokens need not be computed if they are found: none that holds the last known
  // token, or tokens whose logits are still needed for log probabilities of the prompt.
  uint32_t SharableBlocks(uint32_t block_tokens) const;
  // The names of its first `count` blocks, which are full. Each is computed once.
  absl::Span<const BlockHash> BlockNames(const BlockHashKey& key, uint32_t block_tokens, uint32_t count);
  // Of its table, the first so many are named.
  uint32_t named_blocks() const { return named_blocks_; }
  void set_named_blocks(uint32_t count) { named_blocks_ = count; }
  // Positions that it did not compute since it last (re)started.
  uint32_t cached() const { return cached_; }
  bool wants_prompt_logprobs() const { return request_.prompt_logprobs.has_value(); }

  // `change`: see since(). The table holds the blocks of the first `cached` positions, and they are named.
  void Start(uint64_t change, uint32_t cached, uint32_t block_tokens);

  // Under static batching: it may be admitted although others run.
  bool in_batch() const { return in_batch_; }
  void JoinBatch() { in_batch_ = true; }

  // It was kept back and waits from now on. `change`: see since().
  void Rejoin(uint64_t change) { since_ = change; }
  // For another ring, whose blocks may be of another size: all of it must fit into `tokens`. REQUIRES: it
  // never ran, and tokens() is less than `tokens`.
  void FitInto(uint32_t tokens) {
    max_tokens_ = std::min(max_tokens_, tokens - prompt_tokens_);
    block_names_.clear();
  }

  // Back to waiting: everything known is computed again, nothing is reported again. REQUIRES: no blocks held.
  void Preempt(uint64_t change);

  // Puts the next `rows` known tokens into a microbatch; samples if they are the last known ones.
  // REQUIRES: running, 1 <= rows <= tokens() - planned(), blocks for all planned positions.
  PlanSegment PlanRows(uint32_t rows, absl::Span<const TokenId> end_tokens, absl::Time now);

  // A microbatch with this sequence came back.
  void Landed() { --in_flight_; }

  // Takes the log probabilities of prompt tokens from `first_position` on; gives those not taken before, if
  // any.
  std::optional<PromptLogprobsReady> TakePromptLogprobs(uint32_t first_position,
                                                        std::vector<TokenLogprobs> positions);

  // The sampled token. `ready_order`: see SequenceView. Says whether the sequence ends with it.
  std::optional<SequenceEnd> AppendToken(TokenId token, absl::Span<const TokenId> end_tokens,
                                         uint64_t ready_order, absl::Time now);

  // The final action; `output_tokens` may be less than was generated.
  SequenceFinished Finish(const absl::Status& status, const SequenceEnd& end, uint32_t output_tokens,
                          absl::Time now) const;

 private:
  void RequestPromptLogprobs(PlanSegment* segment) const;
  bool IsEndToken(TokenId token, absl::Span<const TokenId> end_tokens) const;

  SequenceRequest request_;  // its prompt has moved to tokens_
  uint32_t max_tokens_;
  const SequenceOrder order_;
  uint32_t prompt_tokens_;
  std::vector<TokenId> tokens_;  // prompt, then generated
  std::vector<BlockId> blocks_;
  std::vector<BlockHash> block_names_;
  uint32_t named_blocks_ = 0;
  uint32_t cached_ = 0;
  uint32_t cached_prompt_tokens_ = 0;
  uint32_t planned_ = 0;
  uint32_t in_flight_ = 0;        // microbatches
  uint32_t prompt_reported_ = 1;  // prompt tokens whose log probabilities were given out; the first has none
  uint64_t ready_order_ = 0;
  bool running_ = false;
  bool preempted_ = false;
  uint64_t since_;
  bool in_batch_ = false;

  absl::Time arrived_;
  absl::Time first_planned_ = absl::InfiniteFuture();
  absl::Time first_token_ = absl::InfiniteFuture();
  absl::Time last_token_ = absl::InfiniteFuture();
};

}  // namespace millrace
