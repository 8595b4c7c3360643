#include "tests/unit/stage/golden_run.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace millrace::testing {
namespace {

double LogSumExp(const std::vector<double>& values) {
  const double largest = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (const double v : values) sum += std::exp(v - largest);
  return largest + std::log(sum);
}

// sum p log(p / q) of the distributions over these tokens alone, from their logits.
double Divergence(const std::vector<double>& golden, const std::vector<double>& other) {
  const double golden_total = LogSumExp(golden), other_total = LogSumExp(other);
  double sum = 0;
  for (size_t i = 0; i < golden.size(); ++i) {
    const double p = golden[i] - golden_total;
    sum += std::exp(p) * (p - (other[i] - other_total));
  }
  return sum;
}

}  // namespace

GoldenRun::GoldenRun(StageRing& ring, const nlohmann::json& golden) : ring_(ring), golden_(golden) {
  sequence_.tokens = golden["ids"].get<std::vector<TokenId>>();
  prompt_ = static_cast<uint32_t>(sequence_.tokens.size());
  const auto greedy = golden["greedy"].get<std::vector<TokenId>>();
  sequence_.tokens.insert(sequence_.tokens.end(), greedy.begin(), greedy.end());
  sequence_.blocks = Blocks(0, static_cast<uint32_t>(sequence_.tokens.size()));
}

Distance GoldenRun::Measure() {
  Distance distance;
  const uint32_t last_rows = Prefill(0, prompt_);
  const std::vector<float> logits = ring_.Logits(last_rows - 1);
  std::vector<double> golden_logits, our_logits;
  for (const nlohmann::json& entry : golden_["top"]) {
    golden_logits.push_back(entry[1].get<double>());
    our_logits.push_back(static_cast<double>(logits[entry[0].get<TokenId>()]));
  }
  distance.divergence = Divergence(golden_logits, our_logits);
  Prefill(prompt_, static_cast<uint32_t>(sequence_.tokens.size()) - 1);
  if (golden_.contains("nll")) {
    double sum = 0;
    for (size_t i = 0; i + 1 < prompt_; ++i) sum -= logprobs_[i].logprob;
    distance.nll = std::fabs(sum / (prompt_ - 1) - golden_["nll"].get<double>());
  }
  for (size_t at = prompt_; at < sequence_.tokens.size(); ++at) {
    if (golden_["margin"][at - prompt_].get<double>() <= 0.5) continue;
    ++distance.steps;
    distance.agree += logprobs_[at - 1].top[0].first == sequence_.tokens[at] ? 1 : 0;
  }
  return distance;
}

uint32_t GoldenRun::Prefill(uint32_t first, uint32_t end) {
  uint32_t rows = 0;
  for (; first < end; first += rows) {
    rows = std::min(end - first, ring_.limits().max_rows);
    StageSegment segment = sequence_.Segment(first, rows);
    segment.prompt_logprobs = 1;
    segment.next_prompt_id = sequence_.tokens[first + rows];
    for (SequenceResult& result : ring_.Run(BatchOf({segment}))) {
      for (TokenLogprobs& token : result.prompt_logprobs) logprobs_.push_back(std::move(token));
    }
  }
  return rows;
}

}  // namespace millrace::testing
