#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "worker/stage/sampler.h"

namespace millrace {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

double Orderly(float logit) {
  return std::isnan(logit) ? kNever : std::min<double>(logit, std::numeric_limits<float>::max());
}

// Log-softmax in two steps: a logarithm of a sum would vanish beside a large logit.
struct Normaliser {
  double largest;
  double log_sum;  // of exp(logit - largest)

  float Logprob(float logit) const { return static_cast<float>(Orderly(logit) - largest - log_sum); }
};

Normaliser Normalise(absl::Span<const float> logits) {
  double largest = kNever;
  for (float logit : logits) largest = std::max(largest, Orderly(logit));
  if (largest == kNever) return {0, 0};  // no token is possible: each has log probability -inf
  double sum = 0;
  for (float logit : logits) sum += std::exp(Orderly(logit) - largest);
  return {largest, std::log(sum)};
}

// The largest `count` logits by insertion: count is small, and nearly all logits fail the first comparison.
std::vector<TokenId> LargestIds(absl::Span<const float> logits, size_t count) {
  std::vector<TokenId> best;
  best.reserve(count + 1);
  for (size_t id = 0; id < logits.size(); ++id) {
    const double logit = Orderly(logits[id]);
    if (best.size() == count && logit <= Orderly(logits[best.back()])) continue;
    const auto place =
        std::find_if(best.begin(), best.end(), [&](TokenId other) { return logit > Orderly(logits[other]); });
    best.insert(place, static_cast<TokenId>(id));
    if (best.size() > count) best.pop_back();
  }
  return best;
}

}  // namespace

TokenLogprobs ComputeLogprobs(absl::Span<const float> logits, TokenId token, uint32_t alternatives) {
  MILLRACE_CHECK(token < logits.size());
  const Normaliser normaliser = Normalise(logits);
  TokenLogprobs result;
  result.token = token;
  result.logprob = normaliser.Logprob(logits[token]);
  if (alternatives == 0) return result;
  for (TokenId id : LargestIds(logits, std::min<size_t>(alternatives, logits.size()))) {
    result.top.emplace_back(id, normaliser.Logprob(logits[id]));
  }
  return result;
}

}  // namespace millrace
