// How far the int8 path is from float32 on a real model, and that llama.cpp is no nearer: both against
// tests/golden/smollm2.json, llama.cpp's distances in tests/golden/llama_cpp_smollm2.json, which
// make_llama_cpp_golden.py measured. Needs the model file, named by MILLRACE_TEST_MODEL.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/stage/golden_cases.h"
#include "tests/unit/stage/stage_ring.h"

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

struct Distance {
  double nll = 0;         // of the mean negative log likelihood of the prompt
  double divergence = 0;  // after the prompt, over golden's tokens
  int steps = 0;          // golden tokens with a margin above 0.5
  int agree = 0;          // that are the most likely here, too
};

// One prompt and golden's continuation of it.
class GoldenRun {
 public:
  GoldenRun(StageRing& ring, const nlohmann::json& golden) : ring_(ring), golden_(golden) {
    sequence_.tokens = golden["ids"].get<std::vector<TokenId>>();
    prompt_ = static_cast<uint32_t>(sequence_.tokens.size());
    const auto greedy = golden["greedy"].get<std::vector<TokenId>>();
    sequence_.tokens.insert(sequence_.tokens.end(), greedy.begin(), greedy.end());
    sequence_.blocks = Blocks(0, static_cast<uint32_t>(sequence_.tokens.size()));
  }

  Distance Measure() {
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

 private:
  // Runs positions [first, end); gives the rows of the last microbatch.
  uint32_t Prefill(uint32_t first, uint32_t end) {
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

  StageRing& ring_;
  const nlohmann::json& golden_;
  TestSequence sequence_;
  uint32_t prompt_ = 0;
  std::vector<TokenLogprobs> logprobs_;
};

TEST(StageAccuracyTest, EightBitActivationsAreNoFartherFromFloat32ThanLlamaCpp) {
  ASSERT_NE(GoldenModelPath(), nullptr)
      << "MILLRACE_TEST_MODEL is not set; tests/run.sh sets it to the model file";
  const nlohmann::json peer = ReadGolden("llama_cpp_smollm2.json");
  ASSERT_TRUE(peer.is_object());
  TestModel model = TestModel::FromFile(GoldenModelPath(), "auto");
  auto backend = kernels::MakeCpuBackend({.activations = kernels::ActivationType::kInt8});
  ASSERT_TRUE(backend.ok());
  model.backend = *std::move(backend);
  StageRing ring(model, {.max_rows = 128});
  Distance sum;
  int prompts = 0, with_nll = 0;
  for (const nlohmann::json& golden : ReadGoldenCases()) {
    const Distance distance = GoldenRun(ring, golden).Measure();
    sum.nll += distance.nll;
    sum.divergence += distance.divergence;
    sum.steps += distance.steps;
    sum.agree += distance.agree;
    EXPECT_EQ(distance.agree, distance.steps) << golden["name"];
    ++prompts;
    with_nll += golden.contains("nll") ? 1 : 0;
  }
  ASSERT_EQ(prompts, 24);
  const double nll = sum.nll / with_nll, divergence = sum.divergence / prompts;
  std::printf("mean distance: log likelihood %.6f, divergence %.6f, tokens %d of %d\n", nll, divergence,
              sum.agree, sum.steps);
  EXPECT_EQ(sum.steps, 914);
  for (const char* attention : {"flash", "no_flash"}) {
    EXPECT_LE(nll, peer[attention]["mean_nll_error"].get<double>()) << attention;
    EXPECT_LE(divergence, peer[attention]["mean_kl"].get<double>()) << attention;
  }
}

}  // namespace
}  // namespace millrace::testing
