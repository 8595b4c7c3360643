#include "tests/unit/scheduler/simulated_ring.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/scheduler/ring_timing.h"
#include "tests/unit/scheduler/toy_model.h"

namespace millrace::testing {
namespace {

uint32_t End(const PlanSegment& segment) {
  return segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
}

// What the last stage makes of a segment, from the tokens that its KV memory holds.
std::optional<SequenceResult> Sample(const PlanSegment& segment, const std::vector<TokenId>& tokens) {
  if (!segment.sampling && !segment.prompt_logprobs) return std::nullopt;
  SequenceResult result;
  result.sequence = segment.sequence;
  result.position = End(segment);
  const absl::Span<const TokenId> known(tokens);
  if (segment.prompt_logprobs) {
    result.first_prompt_position = segment.first_position + 1;
    for (uint32_t p = segment.first_position + 1; p < End(segment); ++p) {
      result.prompt_logprobs.push_back(ToyLogprobs(known.first(p), tokens[p], *segment.prompt_logprobs));
    }
    if (segment.next_prompt_id) {
      result.prompt_logprobs.push_back(ToyLogprobs(known, *segment.next_prompt_id, *segment.prompt_logprobs));
    }
  }
  if (segment.sampling) {
    result.token =
        ToyNextToken(known, *segment.sampling, segment.suppressed_ids, segment.history_prompt_tokens);
    if (segment.sampling->logprobs)
      result.logprobs = ToyLogprobs(known, *result.token, *segment.sampling->logprobs);
  }
  return result;
}

}  // namespace

SimulatedRing::SimulatedRing(const RingShape& shape, std::function<uint64_t(uint64_t)> random)
    : shape_(shape), random_(std::move(random)), stages_(shape.num_stages) {
  for (Stage& stage : stages_) stage.memory.resize(size_t{shape.num_blocks} * shape.block_tokens);
  const uint64_t fixed = random_(4) == 0 ? 5000 : 500;
  const uint64_t row = 1 + random_(60);
  for (Stage& stage : stages_) {
    stage.fixed_us = static_cast<double>(random_(fixed));
    stage.row_us = static_cast<double>(random_(row));
    stage.position_us = static_cast<double>(random_(10)) / 100;
  }
  jitter_us_ = random_(2) == 0 ? 1000 : 1;
  hop_us_ = random_(4) == 0 ? 10000 : 100;
}

void SimulatedRing::Send(MicrobatchPlan plan, absl::Time now) {
  const uint64_t id = plan.id.value();
  absl::Time arrival = now;
  std::vector<StageTimes> times;
  const BatchFeatures features = FeaturesOf(plan);
  for (size_t s = 0; s < stages_.size(); ++s) {
    const absl::Time start = std::max(arrival, stages_[s].free_at);
    events_.emplace(start, Event{s, id});
    const double us = stages_[s].fixed_us + stages_[s].row_us * features.rows() +
                      stages_[s].position_us * (features.decode_attention + features.prefill_attention);
    stages_[s].free_at = start + absl::Microseconds(1 + random_(jitter_us_) + static_cast<int64_t>(us));
    times.push_back({absl::ToDoubleSeconds(stages_[s].free_at - arrival),
                     absl::ToDoubleSeconds(stages_[s].free_at - start)});
    arrival = stages_[s].free_at + absl::Microseconds(random_(10) == 0 ? random_(5000) : random_(hop_us_));
  }
  last_result_ = std::max(last_result_, arrival);
  events_.emplace(last_result_, Event{stages_.size(), id});
  trips_.emplace(id, Trip{std::move(plan), {}, std::move(times)});
}

absl::Time SimulatedRing::NextEventTime() const {
  return events_.empty() ? absl::InfiniteFuture() : events_.begin()->first;
}

absl::Status SimulatedRing::Step() {
  const Event event = events_.begin()->second;
  events_.erase(events_.begin());
  Trip& trip = trips_.at(event.microbatch);
  if (event.stage < stages_.size()) return Run(event.stage, trip.plan);
  results_.push_back({trip.plan.id, std::move(trip.results), std::move(trip.stages)});
  trips_.erase(event.microbatch);
  return absl::OkStatus();
}

SimulatedRing::Slot& SimulatedRing::SlotAt(Stage& stage, const PlanSegment& segment,
                                           uint32_t position) const {
  const size_t block = segment.block_ids.at(position / shape_.block_tokens);
  return stage.memory.at(block * shape_.block_tokens + position % shape_.block_tokens);
}

// As a kernel does: writes the keys and values of all rows, then reads those of all earlier positions.
absl::Status SimulatedRing::Run(size_t stage_index, const MicrobatchPlan& plan) {
  Stage& stage = stages_[stage_index];
  if (plan.id.value() != ++stage.last_run)
    return absl::InternalError("a stage ran microbatches out of order");
  for (const PlanSegment& segment : plan.segments) {
    for (size_t i = 0; i < segment.token_ids.size(); ++i) {
      const uint32_t position = segment.first_position + static_cast<uint32_t>(i);
      SlotAt(stage, segment, position) = {segment.sequence, position, segment.token_ids[i]};
    }
  }
  for (const PlanSegment& segment : plan.segments) {
    std::vector<TokenId> tokens;
    RETURN_IF_ERROR(ReadBack(stage, segment, &tokens));
    if (stage_index + 1 < stages_.size()) continue;
    if (auto result = Sample(segment, tokens))
      trips_.at(plan.id.value()).results.push_back(*std::move(result));
  }
  return absl::OkStatus();
}

absl::Status SimulatedRing::ReadBack(const Stage& stage, const PlanSegment& segment,
                                     std::vector<TokenId>* tokens) const {
  for (uint32_t position = 0; position < End(segment); ++position) {
    const Slot& slot = SlotAt(const_cast<Stage&>(stage), segment, position);
    if (slot.sequence != segment.sequence || slot.position != position) {
      return absl::InternalError(absl::StrCat("sequence ", segment.sequence.value(), " reads position ",
                                              position, " and finds position ", slot.position,
                                              " of sequence ", slot.sequence.value()));
    }
    tokens->push_back(slot.token);
  }
  return absl::OkStatus();
}

}  // namespace millrace::testing
