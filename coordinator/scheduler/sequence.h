// The running state of one request: its tokens, how far they are planned, its KV blocks, and when what
// happened.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "coordinator/scheduler/microbatch_plan.h"

namespace millrace {

struct SequenceEnd {
  FinishReason reason = FinishReason::kLength;
  std::optional<TokenId> matched_token;
};

// Thread: engine. A live sequence waits or runs; it holds blocks only while it runs. Positions 0 .. planned()
// - 1 are, or will be once the microbatches in flight have passed, in the KV cache.
class Sequence {
 public:
  // `max_tokens`: of the request, capped. `number`: order of arrival.
  Sequence(SequenceRequest request, uint32_t max_tokens, uint64_t number, absl::Time now);

  SequenceId id() const { return request_.id; }
  uint64_t number() const { return number_; }
  absl::Time deadline() const { return request_.deadline; }
  uint32_t tokens() const { return static_cast<uint32_t>(tokens_.size()); }
  uint32_t prompt_tokens() const { return prompt_tokens_; }
  uint32_t output_tokens() const { return tokens() - prompt_tokens_; }
  uint32_t planned() const { return planned_; }
  uint32_t in_flight() const { return in_flight_; }
  uint64_t ready_order() const { return ready_order_; }
  bool running() const { return running_; }
  const std::vector<BlockId>& blocks() const { return blocks_; }
  // For the allocator to fill and to empty.
  std::vector<BlockId>* mutable_blocks() { return &blocks_; }

  void Start() { running_ = true; }

  // Back to waiting: everything known is computed again, nothing is reported again. REQUIRES: no blocks held.
  void Preempt();

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
  const uint32_t max_tokens_;
  const uint64_t number_;
  uint32_t prompt_tokens_;
  std::vector<TokenId> tokens_;  // prompt, then generated
  std::vector<BlockId> blocks_;
  uint32_t planned_ = 0;
  uint32_t in_flight_ = 0;        // microbatches
  uint32_t prompt_reported_ = 1;  // prompt tokens whose log probabilities were given out; the first has none
  uint64_t ready_order_ = 0;
  bool running_ = false;

  absl::Time arrived_;
  absl::Time first_planned_ = absl::InfiniteFuture();
  absl::Time first_token_ = absl::InfiniteFuture();
  absl::Time last_token_ = absl::InfiniteFuture();
};

}  // namespace millrace
