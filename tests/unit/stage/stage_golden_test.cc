// The stage against Hugging Face transformers on a real model: tests/golden/smollm2.json, made by
// tests/golden/make_golden.py. Needs the model file, named by the environment variable MILLRACE_TEST_MODEL.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/expect_close.h"
#include "tests/unit/stage/golden_cases.h"
#include "tests/unit/stage/stage_ring.h"
#include "worker/stage/stage_weights.h"

namespace millrace::testing {
namespace {

// Listed so that each is a test of its own; EveryGoldenCaseIsHere keeps the list whole.
const char* const kCases[] = {
    "capital",     "one_token",   "story",      "code_python", "code_cpp",   "list",        "digits",
    "french",      "german",      "japanese",   "emoji",       "whitespace", "apostrophes", "special_in_text",
    "chat_simple", "chat_system", "chat_turns", "chat_list",   "science",    "json",        "markdown",
    "medium_300",  "long_1000",   "long_2000",
};

nlohmann::json FindCase(const std::string& name) {
  for (const nlohmann::json& golden : ReadGoldenCases()) {
    if (golden["name"] == name) return golden;
  }
  return nullptr;
}

class StageGoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    ASSERT_NE(GoldenModelPath(), nullptr)
        << "MILLRACE_TEST_MODEL is not set; tests/run.sh sets it to the model file";
    model_ = TestModel::FromFile(GoldenModelPath(), "auto");
    golden_ = FindCase(GetParam());
    ASSERT_TRUE(golden_.is_object());
    prompt_ = golden_["ids"].get<std::vector<TokenId>>();
    greedy_ = golden_["greedy"].get<std::vector<TokenId>>();
    sequence_.tokens = prompt_;
    sequence_.tokens.insert(sequence_.tokens.end(), greedy_.begin(), greedy_.end());
    sequence_.blocks = Blocks(0, sequence_.tokens.size());
  }

  // Runs positions [first, end), asking for log probabilities of the tokens in positions 1 .. end.
  void Prefill(StageRing& ring, uint32_t first, uint32_t end, std::vector<TokenLogprobs>& logprobs) {
    while (first < end) {
      const uint32_t rows = std::min(end - first, ring.limits().max_rows);
      StageSegment segment = sequence_.Segment(first, rows);
      segment.prompt_logprobs = 1;
      segment.next_prompt_id = sequence_.tokens[first + rows];
      std::vector<SequenceResult> results = ring.Run(BatchOf({segment}));
      ASSERT_EQ(results.size(), 1u);
      for (TokenLogprobs& token : results[0].prompt_logprobs) logprobs.push_back(std::move(token));
      last_row_ = rows - 1;
      first += rows;
    }
  }

  void ExpectTopLogits(const std::vector<float>& logits) {
    for (const nlohmann::json& entry : golden_["top"]) {
      EXPECT_NEAR(logits[entry[0].get<TokenId>()], entry[1].get<double>(), 0.005) << "token " << entry[0];
    }
    const double threshold = golden_["top"].back()[1].get<double>() + 0.01;
    const auto larger =
        std::count_if(logits.begin(), logits.end(), [&](float logit) { return logit > threshold; });
    EXPECT_LT(larger, 32) << "no other token is among the top";
  }

  void ExpectNll(const std::vector<TokenLogprobs>& logprobs) {
    if (prompt_.size() == 1) return;
    double sum = 0;
    for (size_t i = 0; i + 1 < prompt_.size(); ++i) {
      EXPECT_EQ(logprobs[i].token, prompt_[i + 1]);
      sum -= logprobs[i].logprob;
    }
    EXPECT_NEAR(sum / static_cast<double>(prompt_.size() - 1), golden_["nll"].get<double>(), 1e-3);
  }

  // Greedy token i stands at position prompt + i.
  void ExpectGreedy(const std::vector<TokenLogprobs>& logprobs) {
    for (size_t i = 0; i < greedy_.size(); ++i) {
      const TokenLogprobs& at = logprobs[prompt_.size() - 1 + i];
      ASSERT_EQ(at.token, greedy_[i]);
      if (golden_["margin"][i].get<double>() <= 0.01) continue;
      EXPECT_EQ(at.top[0].first, greedy_[i]) << "greedy token " << i;
    }
  }

  TestModel model_;
  nlohmann::json golden_;
  std::vector<TokenId> prompt_;
  std::vector<TokenId> greedy_;
  TestSequence sequence_;
  uint32_t last_row_ = 0;
};
INSTANTIATE_TEST_SUITE_P(SmolLm2, StageGoldenTest, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(StageGoldenTest, AgreesWithTransformersTeacherForced) {
  StageRing ring(model_, {.max_rows = 128});
  std::vector<TokenLogprobs> logprobs;
  const auto prompt = static_cast<uint32_t>(prompt_.size());
  Prefill(ring, 0, prompt, logprobs);
  ExpectTopLogits(ring.Logits(last_row_));
  Prefill(ring, prompt, sequence_.tokens.size() - 1, logprobs);
  ASSERT_EQ(logprobs.size(), sequence_.tokens.size() - 1);
  ExpectNll(logprobs);
  ExpectGreedy(logprobs);
}

class StageGoldenHiddenTest : public StageGoldenTest {};
INSTANTIATE_TEST_SUITE_P(SmolLm2, StageGoldenHiddenTest, ::testing::Values("capital"),
                         [](const auto& info) { return std::string(info.param); });

// The first 8 values of the last token: after the embedding, after each layer but the last, and after the
// output norm.
TEST_P(StageGoldenHiddenTest, ResidualStreamAgreesAfterEveryLayer) {
  const auto hidden = golden_["hidden"].get<std::vector<std::vector<float>>>();
  ASSERT_EQ(hidden.size(), model_.shape.num_layers + 1);
  StageRing ring(model_, {.layers = std::vector<uint32_t>(model_.shape.num_layers, 1), .max_rows = 8});
  const auto rows = static_cast<uint32_t>(prompt_.size());
  ring.Run(BatchOf({sequence_.Segment(0, rows)}));
  const size_t width = model_.shape.hidden_size;
  const StageWeights weights =
      ViewStageWeights(*model_.file, model_.shape, {0, model_.shape.num_layers, true, true},
                       CutShards(ReadShardShape(*model_.file, model_.shape), 1)->Whole());
  const auto first_values = [](std::vector<float> row) {
    row.resize(8);
    return row;
  };
  const auto last_row = [&](const std::vector<float>& hop) {
    return std::vector<float>(hop.end() - width, hop.end());
  };
  // Golden values have 6 decimals; the residual stream grows to some thousands here and there.
  const Tolerance tolerance{.absolute = 1e-3, .relative = 1e-5};

  std::vector<float> embedded(width);
  model_.backend->Embed({&prompt_.back(), 1, weights.token_embedding, embedded.data()});
  EXPECT_TRUE(IsClose(first_values(embedded), hidden[0], Tolerance{.absolute = 1e-6}));
  for (size_t layer = 0; layer + 1 < ring.hops().size(); ++layer) {
    EXPECT_TRUE(IsClose(first_values(last_row(ring.hops()[layer])), hidden[layer + 1], tolerance)) << layer;
  }
  std::vector<float> out = last_row(ring.hops().back());
  model_.backend->RmsNorm(
      {out.data(), weights.output_norm.data, out.data(), 1, width, model_.shape.rms_epsilon});
  EXPECT_TRUE(IsClose(first_values(out), hidden.back(), tolerance));
}

class StageGoldenGreedyTest : public StageGoldenTest {};
INSTANTIATE_TEST_SUITE_P(SmolLm2, StageGoldenGreedyTest,
                         ::testing::Values("capital", "digits", "chat_simple"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(StageGoldenGreedyTest, DecodeGivesTheGoldenTokens) {
  for (const std::vector<uint32_t>& layers : std::vector<std::vector<uint32_t>>{{30}, {11, 19}}) {
    StageRing ring(model_, {.layers = layers});
    auto first = uint32_t{0};
    auto rows = static_cast<uint32_t>(prompt_.size());
    for (size_t i = 0; i < greedy_.size(); ++i) {
      StageSegment segment = sequence_.Segment(first, rows);
      segment.sampling.emplace().temperature = 0;
      const std::vector<SequenceResult> results = ring.Run(BatchOf({segment}));
      ASSERT_EQ(results[0].token, greedy_[i]) << "token " << i;
      first += rows;
      rows = 1;
    }
  }
}

TEST(StageGoldenListTest, EveryGoldenCaseIsHere) {
  std::set<std::string> names;
  for (const nlohmann::json& golden : ReadGoldenCases()) names.insert(golden["name"]);
  EXPECT_EQ(names, std::set<std::string>(std::begin(kCases), std::end(kCases)));
}

}  // namespace
}  // namespace millrace::testing
