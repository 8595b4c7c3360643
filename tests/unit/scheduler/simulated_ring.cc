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

// By position: the hash of the salt and of all tokens up to it.
std::vector<uint64_t> PrefixHashes(const SimulatedRing::Known& known, uint32_t count) {
  std::vector<uint64_t> hashes;
  uint64_t hash = 0x9E3779B97F4A7C15ull;
  const auto mix = [&hash](uint64_t value) {
    hash = (hash ^ (value + 1)) * 0xBF58476D1CE4E5B9ull;
    hash ^= hash >> 31;
  };
  for (char c : known.salt) mix(static_cast<unsigned char>(c));
  mix(UINT32_MAX);
  for (uint32_t i = 0; i < count; ++i) {
    mix(known.tokens.at(i));
    hashes.push_back(hash);
  }
  return hashes;
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

void SimulatedRing::Send(MicrobatchPlan plan, std::vector<Known> known, absl::Time now) {
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
  trips_.emplace(id, Trip{std::move(plan), std::move(known), {}, std::move(times)});
}

absl::Time SimulatedRing::NextEventTime() const {
  return events_.empty() ? absl::InfiniteFuture() : events_.begin()->first;
}

absl::Status SimulatedRing::Step() {
  const Event event = events_.begin()->second;
  events_.erase(events_.begin());
  Trip& trip = trips_.at(event.microbatch);
  if (event.stage < stages_.size()) return Run(event.stage, trip);
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
absl::Status SimulatedRing::Run(size_t stage_index, Trip& trip) {
  Stage& stage = stages_[stage_index];
  if (trip.plan.id.value() != ++stage.last_run)
    return absl::InternalError("a stage ran microbatches out of order");
  for (size_t s = 0; s < trip.plan.segments.size(); ++s) {
    const PlanSegment& segment = trip.plan.segments[s];
    const std::vector<uint64_t> hashes = PrefixHashes(trip.known[s], End(segment));
    for (uint32_t position = segment.first_position; position < End(segment); ++position) {
      Slot& slot = SlotAt(stage, segment, position);
      const TokenId token = segment.token_ids[position - segment.first_position];
      if (slot.microbatch == trip.plan.id.value()) return absl::InternalError("two segments write one slot");
      slot = {trip.plan.id.value(), segment.sequence, token, hashes[position]};
    }
  }
  for (size_t s = 0; s < trip.plan.segments.size(); ++s) {
    RETURN_IF_ERROR(ReadBack(stage, trip, s));
    if (stage_index + 1 < stages_.size()) continue;
    std::vector<TokenId> tokens = trip.known[s].tokens;
    tokens.resize(End(trip.plan.segments[s]));
    if (auto result = Sample(trip.plan.segments[s], tokens)) trip.results.push_back(*std::move(result));
  }
  return absl::OkStatus();
}

// Each slot holds the token that stands there in this sequence, computed after the same tokens, by an earlier
// microbatch or by this segment.
absl::Status SimulatedRing::ReadBack(Stage& stage, const Trip& trip, size_t index) const {
  const PlanSegment& segment = trip.plan.segments[index];
  const std::vector<uint64_t> hashes = PrefixHashes(trip.known[index], End(segment));
  for (uint32_t position = 0; position < End(segment); ++position) {
    const Slot& slot = SlotAt(stage, segment, position);
    const bool in_time = slot.microbatch < trip.plan.id.value() || slot.writer == segment.sequence;
    if (slot.token != trip.known[index].tokens.at(position) || slot.prefix != hashes[position] || !in_time) {
      return absl::InternalError(absl::StrCat("microbatch ", trip.plan.id.value(), ", sequence ",
                                              segment.sequence.value(), " reads position ", position,
                                              " and finds what microbatch ", slot.microbatch,
                                              " wrote for sequence ", slot.writer.value()));
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace::testing
