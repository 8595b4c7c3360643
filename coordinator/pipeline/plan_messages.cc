#include "coordinator/pipeline/plan_messages.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

void FillSampling(const SamplingOptions& from, v1::PlanSampling* to) {
  to->set_temperature(from.temperature);
  to->set_top_k(from.top_k);
  to->set_top_p(from.top_p);
  to->set_min_p(from.min_p);
  to->set_repetition_penalty(from.repetition_penalty);
  to->set_presence_penalty(from.presence_penalty);
  to->set_frequency_penalty(from.frequency_penalty);
  to->set_seed(from.seed);
  for (const auto& [token, bias] : from.logit_bias) {
    to->add_bias_ids(token);
    to->add_bias_values(bias);
  }
  if (from.logprobs.has_value()) to->set_logprobs(*from.logprobs);
}

void FillSegment(const PlanSegment& from, v1::PlanSegment* to) {
  to->set_sequence_id(from.sequence.value());
  to->set_first_position(from.first_position);
  to->mutable_token_ids()->Add(from.token_ids.begin(), from.token_ids.end());
  to->mutable_block_ids()->Add(from.block_ids.begin(), from.block_ids.end());
  if (from.sampling.has_value()) FillSampling(*from.sampling, to->mutable_sampling());
  to->mutable_suppressed_ids()->Add(from.suppressed_ids.begin(), from.suppressed_ids.end());
  to->mutable_history_ids()->Add(from.history.begin(), from.history.end());
  to->set_history_prompt_tokens(from.history_prompt_tokens);
  if (from.prompt_logprobs.has_value()) to->set_prompt_logprobs(*from.prompt_logprobs);
  if (from.next_prompt_id.has_value()) to->set_next_prompt_id(*from.next_prompt_id);
}

absl::StatusOr<TokenLogprobs> ToTokenLogprobs(const v1::ResultLogprobs& wire) {
  TokenLogprobs logprobs;
  logprobs.token = wire.chosen().token_id();
  logprobs.logprob = wire.chosen().logprob();
  // Minus infinity is a log probability, NaN and plus infinity are not.
  const auto possible = [](float logprob) { return logprob < std::numeric_limits<float>::infinity(); };
  bool all_possible = possible(logprobs.logprob);
  for (const v1::LogprobEntry& entry : wire.top()) {
    all_possible = all_possible && possible(entry.logprob());
    logprobs.top.emplace_back(entry.token_id(), entry.logprob());
  }
  if (!all_possible || logprobs.top.size() > kMaxLogprobs) {
    return absl::InternalError("log probabilities that are not numbers, infinite or too many");
  }
  return logprobs;
}

absl::StatusOr<SequenceResult> ToSequenceResult(const v1::ResultSegment& wire) {
  SequenceResult result;
  result.sequence = SequenceId(wire.sequence_id());
  result.position = wire.position();
  if (wire.has_token_id()) result.token = wire.token_id();
  if (wire.has_logprobs()) {
    ASSIGN_OR_RETURN(result.logprobs, ToTokenLogprobs(wire.logprobs()));
  }
  result.first_prompt_position = wire.first_prompt_position();
  for (const v1::ResultLogprobs& prompt : wire.prompt_logprobs()) {
    ASSIGN_OR_RETURN(TokenLogprobs logprobs, ToTokenLogprobs(prompt));
    result.prompt_logprobs.push_back(std::move(logprobs));
  }
  return result;
}

}  // namespace

v1::Plan ToWirePlan(Epoch epoch, const MicrobatchPlan& plan) {
  v1::Plan wire;
  wire.set_epoch(epoch.value());
  wire.set_microbatch_id(plan.id.value());
  for (const PlanSegment& segment : plan.segments) FillSegment(segment, wire.add_segments());
  return wire;
}

absl::StatusOr<std::vector<SequenceResult>> ParseResult(const HopMessage& message) {
  v1::MicrobatchResult wire;
  if (message.kind != HopKind::kResult || message.payload == nullptr ||
      !wire.ParseFromArray(message.payload->data, static_cast<int>(message.payload->size))) {
    return absl::InternalError(absl::StrCat("microbatch ", message.microbatch.value(), ": not a result"));
  }
  std::vector<SequenceResult> results;
  results.reserve(wire.segments_size());
  for (const v1::ResultSegment& segment : wire.segments()) {
    ASSIGN_OR_RETURN(SequenceResult result, ToSequenceResult(segment));
    results.push_back(std::move(result));
  }
  return results;
}

size_t MaxResultBytes(uint32_t max_rows) {
  constexpr size_t kEntryBytes = 16;
  constexpr size_t kSegmentBytes = 64;
  return size_t{max_rows} * (kSegmentBytes + 2 * (kMaxLogprobs + 1) * kEntryBytes) + 4096;
}

}  // namespace millrace
