#include "worker/stage/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "common/check.h"

namespace millrace {
namespace {

constexpr float kOut = -std::numeric_limits<float>::infinity();
constexpr float kLargestFloat = std::numeric_limits<float>::max();

// With NaN out of the way and no +inf, differences and comparisons below mean what they say.
float Orderly(float logit) {
  return std::isnan(logit) ? kOut : std::min(logit, kLargestFloat);
}

double Sum(const std::vector<double>& values, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// Of values without NaN. One chain of comparisons for each lane, so that compilers can use vectors.
float LargestValue(absl::Span<const float> values) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, kOut);
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = std::max(lanes[lane], values[i + lane]);
  }
  for (; i < values.size(); ++i) lanes[0] = std::max(lanes[0], values[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

// Of orderly values, -inf being none. The lowest id wins a tie.
std::optional<TokenId> LargestOrderly(absl::Span<const float> values) {
  constexpr size_t kBlock = 1024;
  float best = kOut;
  size_t best_begin = 0;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const float largest = LargestValue(values.subspan(begin, kBlock));
    if (largest > best) {
      best = largest;
      best_begin = begin;
    }
  }
  if (best == kOut) return std::nullopt;
  const auto found = std::find(values.begin() + static_cast<ptrdiff_t>(best_begin), values.end(), best);
  return static_cast<TokenId>(found - values.begin());
}

// The lowest id wins a tie.
std::optional<TokenId> LargestFinite(absl::Span<const float> values) {
  std::optional<TokenId> best;
  for (size_t id = 0; id < values.size(); ++id) {
    if (!(values[id] > kOut) || std::isinf(values[id])) continue;
    if (!best.has_value() || values[id] > values[*best]) best = static_cast<TokenId>(id);
  }
  return best;
}

}  // namespace

Sampler::Sampler(uint32_t vocabulary_size)
    : adjusted_(vocabulary_size),
      candidates_(vocabulary_size),
      weights_(vocabulary_size),
      occurrences_(vocabulary_size, 0) {}

uint64_t Sampler::scratch_bytes() const {
  return adjusted_.size() * (sizeof(float) + sizeof(TokenId) + sizeof(double) + sizeof(uint32_t));
}

TokenId Sampler::Sample(const SampleInput& input) {
  MILLRACE_CHECK(input.logits.size() == adjusted_.size());
  Adjust(input);
  const std::optional<TokenId> best = LargestOrderly(adjusted_);
  if (!best.has_value()) return LargestFinite(input.logits).value_or(0);
  if (input.options->temperature == 0) return *best;
  largest_ = adjusted_[*best];
  temperature_ = input.options->temperature;
  return Draw(Filter(*input.options), CounterRandom(input.options->seed, input.position));
}

void Sampler::Adjust(const SampleInput& input) {
  std::transform(input.logits.begin(), input.logits.end(), adjusted_.begin(), Orderly);
  for (const auto& [id, bias] : input.options->logit_bias) adjusted_[id] = Orderly(adjusted_[id] + bias);
  for (TokenId id : input.suppressed_ids) adjusted_[id] = kOut;
  if (input.options->needs_history()) Penalize(input);
}

void Sampler::Penalize(const SampleInput& input) {
  const SamplingOptions& options = *input.options;
  // 1 + occurrences in the output; what was only in the prompt has 1.
  for (size_t i = 0; i < input.history.size(); ++i) {
    uint32_t& occurrences = occurrences_[input.history[i]];
    occurrences = std::max(occurrences, 1u) + (i >= input.history_prompt_tokens ? 1 : 0);
  }
  for (TokenId id : input.history) {
    if (occurrences_[id] == 0) continue;
    const uint32_t in_output = occurrences_[id] - 1;
    occurrences_[id] = 0;
    float logit = adjusted_[id];
    logit = logit > 0 ? logit / options.repetition_penalty : logit * options.repetition_penalty;
    if (in_output > 0) {
      logit -= options.presence_penalty;
      logit -= options.frequency_penalty * static_cast<float>(in_output);
    }
    adjusted_[id] = Orderly(logit);
  }
}

size_t Sampler::CollectCandidates() {
  size_t count = 0;
  for (size_t id = 0; id < adjusted_.size(); ++id) {
    if (adjusted_[id] > kOut) candidates_[count++] = static_cast<TokenId>(id);
  }
  return count;
}

size_t Sampler::Filter(const SamplingOptions& options) {
  size_t count = CollectCandidates();
  size_t sorted = 0;
  if (options.top_k > 0 && options.top_k < count) {
    SortLargest(0, options.top_k, count);
    sorted = count = options.top_k;
  }
  Weigh(0, count);
  if (options.top_p < 1) count = KeepTopP(options.top_p, count, sorted);
  if (options.min_p > 0) count = KeepMinP(options.min_p, count);
  return count;
}

size_t Sampler::KeepTopP(double top_p, size_t count, size_t sorted) {
  const double enough = top_p * Sum(weights_, count);
  double reached = 0;
  for (size_t kept = 0; kept < count; ++kept) {
    if (kept == sorted) {
      // A few hundred tokens hold nearly all of the probability nearly always: sorting all would be a waste.
      const size_t end = std::min(count, std::max<size_t>(256, 4 * sorted));
      SortLargest(sorted, end, count);
      Weigh(sorted, end);
      sorted = end;
    }
    reached += weights_[kept];
    if (reached >= enough) return kept + 1;
  }
  return count;
}

size_t Sampler::KeepMinP(double min_p, size_t count) {
  size_t kept = 0;
  for (size_t i = 0; i < count; ++i) {
    if (weights_[i] < min_p) continue;  // the largest weight is 1
    candidates_[kept] = candidates_[i];
    weights_[kept++] = weights_[i];
  }
  return kept;
}

void Sampler::SortLargest(size_t begin, size_t end, size_t count) {
  // A strict total order: the result does not depend on how the library sorts.
  const auto before = [this](TokenId a, TokenId b) {
    return adjusted_[a] > adjusted_[b] || (adjusted_[a] == adjusted_[b] && a < b);
  };
  const auto first = candidates_.begin();
  if (end < count) std::nth_element(first + begin, first + end, first + count, before);
  std::sort(first + begin, first + end, before);
}

void Sampler::Weigh(size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    weights_[i] = std::exp((adjusted_[candidates_[i]] - largest_) / temperature_);
  }
}

TokenId Sampler::Draw(size_t count, double uniform) const {
  const double target = uniform * Sum(weights_, count);
  double passed = 0;
  size_t chosen = 0;
  for (size_t i = 0; i < count; ++i) {
    if (weights_[i] == 0) continue;
    chosen = i;
    passed += weights_[i];
    if (passed > target) break;
  }
  return candidates_[chosen];
}

}  // namespace millrace
