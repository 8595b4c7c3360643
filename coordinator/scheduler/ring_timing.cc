#include "coordinator/scheduler/ring_timing.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace millrace {
namespace {

constexpr double kSmoothing = 0.05;
constexpr double kLargestStep = 4;
constexpr double kClearGain = 0.9;

// Longer than any microbatch or hop can take: the ring would have been given up.
constexpr double kMaxSeconds = 3600;

bool Possible(double seconds) {
  return seconds >= 0 && seconds <= kMaxSeconds;  // false for NaN
}

}  // namespace

void SmoothedSeconds::Add(double seconds) {
  if (!Possible(seconds)) return;
  count_ = std::min(count_ + 1, 1u << 20);
  if (value_ == 0) {
    value_ = seconds;
    return;
  }
  const double weight = std::max(kSmoothing, 1.0 / (count_ + 1));
  value_ += weight * (std::min(seconds, kLargestStep * value_) - value_);
}

BatchFeatures FeaturesOf(const MicrobatchPlan& plan) {
  BatchFeatures features;
  for (const PlanSegment& segment : plan.segments) {
    const double rows = static_cast<double>(segment.token_ids.size());
    if (rows == 1 && segment.sampling.has_value()) {
      features += BatchFeatures::Decode(segment.first_position + 1.0);
      continue;
    }
    BatchFeatures chunk = BatchFeatures::Prefill(segment.first_position, rows, segment.sampling.has_value());
    if (segment.prompt_logprobs.has_value()) chunk.sampled_rows = rows;
    features += chunk;
  }
  return features;
}

RingTiming::RingTiming(uint32_t num_stages, std::vector<StageCost> stage_costs, double hop_seconds)
    : num_stages_(num_stages), models_(num_stages), busy_(num_stages) {
  if (stage_costs.size() == num_stages) {
    for (uint32_t s = 0; s < num_stages; ++s) models_[s] = StageCostModel(std::move(stage_costs[s]));
  }
  if (Possible(hop_seconds)) hop_ = SmoothedSeconds(hop_seconds);
}

void RingTiming::OnPlanned(const BatchFeatures& features) {
  planned_seconds_ = costs().empty() ? 0 : SlowestStageCost(costs())(features);
}

absl::Span<const StageCostModel> RingTiming::costs() const {
  const bool known = std::all_of(models_.begin(), models_.end(), [](const auto& m) { return m.known(); });
  return known ? absl::MakeConstSpan(models_) : absl::Span<const StageCostModel>();
}

void RingTiming::OnReturned(const BatchFeatures& features, double elapsed,
                            absl::Span<const StageTimes> stages) {
  if (stages.size() != num_stages_ || !Possible(elapsed)) return;
  double resident = 0;
  for (const StageTimes& stage : stages) {
    if (!Possible(stage.busy) || !Possible(stage.resident) || stage.busy > stage.resident) return;
    resident += stage.resident;
  }
  for (uint32_t s = 0; s < num_stages_; ++s) {
    busy_[s].Add(stages[s].busy);
    models_[s].Observe(features, stages[s].busy);
  }
  hop_.Add(std::max(0.0, elapsed - resident) / num_stages_);
}

double RingTiming::slowest_stage_seconds() const {
  double slowest = 0;
  for (const SmoothedSeconds& busy : busy_) slowest = std::max(slowest, busy.value());
  return slowest > 0 ? slowest : planned_seconds_;
}

uint32_t RingTiming::Slots(uint32_t cap, const BatchFeatures& decodes) const {
  const double t = slowest_stage_seconds();
  if (t <= 0 || !hop_.known()) return std::min(cap, num_stages_ + 1);
  constexpr double kRounding = 1e-6;
  const double slots = std::ceil(num_stages_ * (t + hop_.value()) / t - kRounding);
  const uint32_t full = slots >= cap ? cap : std::max(num_stages_, static_cast<uint32_t>(slots));
  if (decodes.decode_rows < 2 || costs().empty()) return full;
  return FewerSlots(full, decodes);
}

uint32_t RingTiming::FewerSlots(uint32_t full, const BatchFeatures& decodes) const {
  const SlowestStageCost cost(costs());
  const auto round = [&](uint32_t slots) {
    const double t = cost(decodes.Share(slots));
    return std::max(slots * t, num_stages_ * (t + hop_.value()));
  };
  // Bubbles are certain, the predicted gain is not: several stages stay full unless it is clear.
  const double clear_gain = num_stages_ == 1 ? 1 : kClearGain;
  uint32_t best = full;
  double least = clear_gain * round(full);
  for (uint32_t slots = num_stages_; slots < full; ++slots) {
    if (const double seconds = round(slots); seconds < least) {
      best = slots;
      least = seconds;
    }
  }
  return best;
}

}  // namespace millrace
