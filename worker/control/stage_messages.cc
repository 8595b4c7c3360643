#include "worker/control/stage_messages.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace {
namespace {

SamplingOptions ToSamplingOptions(const v1::PlanSampling& wire) {
  SamplingOptions options;
  options.temperature = wire.temperature();
  options.top_k = wire.top_k();
  options.top_p = wire.top_p();
  options.min_p = wire.min_p();
  options.repetition_penalty = wire.repetition_penalty();
  options.presence_penalty = wire.presence_penalty();
  options.frequency_penalty = wire.frequency_penalty();
  options.seed = wire.seed();
  for (int i = 0; i < wire.bias_ids_size(); ++i) {
    options.logit_bias.emplace_back(wire.bias_ids(i), wire.bias_values(i));
  }
  if (wire.has_logprobs()) options.logprobs = wire.logprobs();
  return options;
}

StageSegment ToStageSegment(const v1::PlanSegment& wire) {
  StageSegment segment;
  segment.sequence = SequenceId(wire.sequence_id());
  segment.first_position = wire.first_position();
  segment.token_ids.assign(wire.token_ids().begin(), wire.token_ids().end());
  segment.block_ids.assign(wire.block_ids().begin(), wire.block_ids().end());
  if (wire.has_sampling()) segment.sampling = ToSamplingOptions(wire.sampling());
  segment.suppressed_ids.assign(wire.suppressed_ids().begin(), wire.suppressed_ids().end());
  segment.history.assign(wire.history_ids().begin(), wire.history_ids().end());
  segment.history_prompt_tokens = wire.history_prompt_tokens();
  if (wire.has_prompt_logprobs()) segment.prompt_logprobs = wire.prompt_logprobs();
  if (wire.has_next_prompt_id()) segment.next_prompt_id = wire.next_prompt_id();
  return segment;
}

void FillLogprobs(const TokenLogprobs& from, v1::ResultLogprobs* to) {
  to->mutable_chosen()->set_token_id(from.token);
  to->mutable_chosen()->set_logprob(from.logprob);
  for (const auto& [token, logprob] : from.top) {
    v1::LogprobEntry* entry = to->add_top();
    entry->set_token_id(token);
    entry->set_logprob(logprob);
  }
}

v1::MicrobatchResult ToWire(const std::vector<SequenceResult>& results) {
  v1::MicrobatchResult wire;
  for (const SequenceResult& result : results) {
    v1::ResultSegment* segment = wire.add_segments();
    segment->set_sequence_id(result.sequence.value());
    segment->set_position(result.position);
    if (result.token.has_value()) segment->set_token_id(*result.token);
    if (result.logprobs.has_value()) FillLogprobs(*result.logprobs, segment->mutable_logprobs());
    segment->set_first_prompt_position(result.first_prompt_position);
    for (const TokenLogprobs& logprobs : result.prompt_logprobs) {
      FillLogprobs(logprobs, segment->add_prompt_logprobs());
    }
  }
  return wire;
}

}  // namespace

absl::StatusOr<StageBatch> ToStageBatch(const v1::Plan& plan, uint32_t max_rows) {
  size_t rows = 0;
  for (const v1::PlanSegment& segment : plan.segments()) {
    rows += segment.token_ids_size();
    if (segment.sampling().bias_ids_size() != segment.sampling().bias_values_size()) {
      return absl::InvalidArgumentError(absl::StrCat("plan ", plan.microbatch_id(), ": ",
                                                     segment.sampling().bias_ids_size(), " bias ids, ",
                                                     segment.sampling().bias_values_size(), " values"));
    }
  }
  if (rows == 0 || rows > max_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan ", plan.microbatch_id(), ": ", rows, " rows; expected 1 to ", max_rows));
  }
  StageBatch batch;
  batch.epoch = Epoch(plan.epoch());
  batch.id = MicrobatchId(plan.microbatch_id());
  batch.segments.reserve(plan.segments_size());
  for (const v1::PlanSegment& segment : plan.segments()) batch.segments.push_back(ToStageSegment(segment));
  return batch;
}

HopMessage ToHopMessage(StageOutput output, BufferPool& pool) {
  HopMessage message;
  message.epoch = output.epoch;
  message.microbatch = output.microbatch;
  message.rows = output.rows;
  message.stamps = std::move(output.stamps);
  if (output.activations != nullptr) {
    message.kind = HopKind::kActivations;
    message.payload = std::move(output.activations);
    return message;
  }
  message.kind = HopKind::kResult;
  const v1::MicrobatchResult wire = ToWire(output.results);
  message.payload = pool.Get(wire.ByteSizeLong());
  wire.SerializeToArray(message.payload->data, static_cast<int>(message.payload->size));
  return message;
}

}  // namespace millrace
