#include "coordinator/scheduler/sequence.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace millrace {
namespace {

bool Contains(absl::Span<const TokenId> ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

Sequence::Sequence(SequenceRequest request, uint32_t max_tokens, uint64_t change, absl::Time now)
    : request_(std::move(request)),
      max_tokens_(max_tokens),
      order_(now + request_.priority * kPriorityUnit, change),
      prompt_tokens_(static_cast<uint32_t>(request_.prompt.size())),
      tokens_(std::move(request_.prompt)),
      since_(change),
      arrived_(now) {
  MILLRACE_CHECK(prompt_tokens_ > 0 && max_tokens_ > 0);
  MILLRACE_CHECK(request_.priority >= -kMaxPriority && request_.priority <= kMaxPriority);
}

uint32_t Sequence::SharableBlocks(uint32_t block_tokens) const {
  uint32_t skippable = tokens() - 1;
  if (request_.prompt_logprobs && prompt_reported_ < prompt_tokens_)
    skippable = std::min(skippable, prompt_reported_ - 1);
  return skippable / block_tokens;
}

absl::Span<const BlockHash> Sequence::BlockNames(const BlockHashKey& key, uint32_t block_tokens,
                                                 uint32_t count) {
  MILLRACE_CHECK(count <= tokens() / block_tokens);
  if (block_names_.empty() && count > 0) block_names_.reserve(tokens() / block_tokens);
  while (block_names_.size() < count) {
    const BlockHash parent = block_names_.empty() ? HashSalt(key, request_.cache_salt) : block_names_.back();
    const absl::Span<const TokenId> tokens(tokens_);
    block_names_.push_back(
        HashBlock(key, parent, tokens.subspan(block_names_.size() * block_tokens, block_tokens)));
  }
  return absl::MakeConstSpan(block_names_).first(count);
}

void Sequence::Start(uint64_t change, uint32_t cached, uint32_t block_tokens) {
  MILLRACE_CHECK(!running_ && blocks_.size() * block_tokens == cached);
  running_ = true;
  named_blocks_ = static_cast<uint32_t>(blocks_.size());
  planned_ = cached_ = cached;
  if (!preempted_) cached_prompt_tokens_ = cached;
  since_ = change;
}

void Sequence::Preempt(uint64_t change) {
  MILLRACE_CHECK(running_ && blocks_.empty());
  running_ = false;
  preempted_ = true;
  since_ = change;
  planned_ = 0;
  cached_ = 0;
  named_blocks_ = 0;
}

PlanSegment Sequence::PlanRows(uint32_t rows, absl::Span<const TokenId> end_tokens, absl::Time now) {
  MILLRACE_CHECK(running_ && rows > 0 && rows <= tokens() - planned_);
  const uint32_t end = planned_ + rows;
  PlanSegment segment;
  segment.sequence = id();
  segment.first_position = planned_;
  segment.token_ids.assign(tokens_.begin() + planned_, tokens_.begin() + end);
  segment.block_ids = blocks_;
  if (end < prompt_tokens_) segment.next_prompt_id = tokens_[end];
  RequestPromptLogprobs(&segment);
  if (end == tokens()) {
    segment.sampling = request_.sampling;
    if (output_tokens() < request_.min_tokens) {
      segment.suppressed_ids = request_.stop_token_ids;
      if (!request_.ignore_eos) {
        segment.suppressed_ids.insert(segment.suppressed_ids.end(), end_tokens.begin(), end_tokens.end());
      }
    }
    if (request_.sampling.needs_history()) {
      segment.history = tokens_;
      segment.history_prompt_tokens = prompt_tokens_;
    }
  }
  planned_ = end;
  ++in_flight_;
  first_planned_ = std::min(first_planned_, now);
  return segment;
}

void Sequence::RequestPromptLogprobs(PlanSegment* segment) const {
  if (!request_.prompt_logprobs) return;
  const uint32_t end = segment->first_position + static_cast<uint32_t>(segment->token_ids.size());
  // The last prompt token that a row of the segment stands before, plus 1.
  const uint32_t reports_end = std::min(end + 1, prompt_tokens_);
  if (reports_end <= segment->first_position + 1 || reports_end <= prompt_reported_) return;
  segment->prompt_logprobs = request_.prompt_logprobs;
}

std::optional<PromptLogprobsReady> Sequence::TakePromptLogprobs(uint32_t first_position,
                                                                std::vector<TokenLogprobs> positions) {
  MILLRACE_CHECK(first_position <= prompt_reported_);
  const size_t known = prompt_reported_ - first_position;
  if (positions.size() <= known) return std::nullopt;
  positions.erase(positions.begin(), positions.begin() + static_cast<ptrdiff_t>(known));
  PromptLogprobsReady ready{id(), prompt_reported_, std::move(positions)};
  prompt_reported_ += static_cast<uint32_t>(ready.positions.size());
  return ready;
}

std::optional<SequenceEnd> Sequence::AppendToken(TokenId token, absl::Span<const TokenId> end_tokens,
                                                 uint64_t ready_order, absl::Time now) {
  tokens_.push_back(token);
  ready_order_ = ready_order;
  if (first_token_ == absl::InfiniteFuture()) first_token_ = now;
  last_token_ = now;
  if (IsEndToken(token, end_tokens)) return SequenceEnd{FinishReason::kEndOfSequence, token};
  if (Contains(request_.stop_token_ids, token)) return SequenceEnd{FinishReason::kStopToken, token};
  if (output_tokens() >= max_tokens_) return SequenceEnd{FinishReason::kLength, std::nullopt};
  return std::nullopt;
}

bool Sequence::IsEndToken(TokenId token, absl::Span<const TokenId> end_tokens) const {
  return !request_.ignore_eos && Contains(end_tokens, token);
}

SequenceFinished Sequence::Finish(const absl::Status& status, const SequenceEnd& end, uint32_t output_tokens,
                                  absl::Time now) const {
  SequenceFinished finished;
  finished.sequence = id();
  finished.status = status;
  finished.reason = end.reason;
  finished.matched_token = end.matched_token;
  finished.prompt_tokens = prompt_tokens_;
  finished.output_tokens = output_tokens;
  finished.cached_prompt_tokens = cached_prompt_tokens_;
  // A phase that the sequence did not complete lasts until now; one that it did not reach, no time.
  finished.timings.queue = std::min(first_planned_, now) - arrived_;
  if (first_planned_ != absl::InfiniteFuture())
    finished.timings.prefill = std::min(first_token_, now) - first_planned_;
  if (first_token_ != absl::InfiniteFuture()) finished.timings.decode = last_token_ - first_token_;
  return finished;
}

}  // namespace millrace
