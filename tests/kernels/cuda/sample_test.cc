// Sampling on the device chooses what the host's sampler chooses.
#include "kernels/cuda/sample.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "tests/kernels/cuda/cuda_testing.h"
#include "worker/stage/sampler.h"

namespace millrace::kernels::cuda {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr size_t kMaxRows = 16;

// A row and what is asked of it, for both samplers.
struct Question {
  std::vector<float> logits;
  SamplingOptions options;
  std::vector<TokenId> history;
  uint32_t history_prompt_tokens = 0;
  std::vector<TokenId> suppressed;
  uint32_t position = 0;
  int64_t given = -1;
};

class CudaSampleTest : public ::testing::Test {
 protected:
  std::vector<SampleResult> Run(const std::vector<Question>& questions) {
    const size_t vocabulary = questions.front().logits.size();
    Describe(questions);
    std::vector<float> all;
    for (const Question& question : questions) {
      all.insert(all.end(), question.logits.begin(), question.logits.end());
    }
    const DeviceArray<float> logits(all);
    const DeviceBytes buffer(SampleBytes(kMaxRows, vocabulary));
    std::vector<uint8_t> staging(SampleStagingBytes(kMaxRows));
    std::vector<SampleResult> results(kMaxRows);
    Sample(device_.queue(),
           {logits.data(), vocabulary, rows_, kMaxRows, buffer.data(), staging.data(), results.data()});
    device_.Wait();
    EXPECT_TRUE(logits.Intact() && buffer.Intact());
    results.resize(questions.size());
    return results;
  }

  void Describe(const std::vector<Question>& questions) {
    rows_.clear();
    seen_.assign(questions.size(), {});
    for (size_t i = 0; i < questions.size(); ++i) {
      const Question& question = questions[i];
      SampleRow& row = rows_.emplace_back();
      row.row = i;
      row.given_token = question.given;
      row.logprobs = question.options.logprobs.has_value();
      row.alternatives = question.options.logprobs.value_or(0);
      row.temperature = question.options.temperature;
      row.top_k = question.options.top_k;
      row.top_p = question.options.top_p;
      row.min_p = question.options.min_p;
      row.repetition_penalty = question.options.repetition_penalty;
      row.presence_penalty = question.options.presence_penalty;
      row.frequency_penalty = question.options.frequency_penalty;
      row.random = static_cast<uint64_t>(CounterRandom(question.options.seed, question.position) * 0x1p53);
      row.bias = question.options.logit_bias;
      row.suppressed = question.suppressed;
      std::map<uint32_t, uint32_t> times;
      for (size_t j = 0; j < question.history.size(); ++j) {
        times[question.history[j]] += j >= question.history_prompt_tokens ? 1 : 0;
      }
      if (question.options.needs_history()) seen_[i].assign(times.begin(), times.end());
      row.seen = seen_[i];
    }
  }

  // As the host's sampler and log probabilities have it.
  void ExpectAsOnHost(const std::vector<Question>& questions) {
    const std::vector<SampleResult> results = Run(questions);
    Sampler sampler(static_cast<uint32_t>(questions.front().logits.size()));
    for (size_t i = 0; i < questions.size(); ++i) {
      const Question& question = questions[i];
      SCOPED_TRACE(i);
      SampleInput input;
      input.logits = question.logits;
      input.options = &question.options;
      input.history = question.history;
      input.history_prompt_tokens = question.history_prompt_tokens;
      input.suppressed_ids = question.suppressed;
      input.position = question.position;
      const TokenId token =
          question.given >= 0 ? static_cast<TokenId>(question.given) : sampler.Sample(input);
      EXPECT_EQ(results[i].token, token);
      if (!question.options.logprobs.has_value()) continue;
      const TokenLogprobs expected = ComputeLogprobs(question.logits, token, *question.options.logprobs);
      const auto logprob = [&](float logit) {
        return static_cast<float>(double{logit} - results[i].largest - std::log(results[i].sum));
      };
      ExpectLogprob(logprob(results[i].logit), expected.logprob);
      ASSERT_EQ(results[i].num_alternatives, expected.top.size());
      for (size_t j = 0; j < expected.top.size(); ++j) {
        EXPECT_EQ(results[i].ids[j], expected.top[j].first) << j;
        ExpectLogprob(logprob(results[i].logits[j]), expected.top[j].second);
      }
    }
  }

  static void ExpectLogprob(float actual, float expected) {
    if (std::isinf(expected)) {
      EXPECT_EQ(actual, expected);
    } else {
      EXPECT_NEAR(actual, expected, 1e-6f * std::max(1.0f, std::abs(expected)));
    }
  }

  std::vector<float> RandomLogits(size_t count, float spread) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> logits(count);
    for (float& logit : logits) logit = normal(random_);
    return logits;
  }

  std::mt19937 random_{5};
  TestDevice device_;
  std::vector<SampleRow> rows_;
  std::vector<std::vector<std::pair<uint32_t, uint32_t>>> seen_;
};

TEST_F(CudaSampleTest, GreedyTakesTheLargestAndTheLowestIdOfATie) {
  std::vector<Question> questions;
  for (size_t place : {size_t{0}, size_t{255}, size_t{256}, size_t{999}}) {
    Question question;
    question.options.temperature = 0;
    question.logits = RandomLogits(1000, 1);
    question.logits[place] = 50;
    questions.push_back(question);
    question.logits[500] = 50;
    questions.push_back(question);
  }
  ExpectAsOnHost(questions);
}

TEST_F(CudaSampleTest, FiltersAndDrawsAsTheHostDoes) {
  for (int round = 0; round < 6; ++round) {
    std::vector<Question> questions;
    for (uint32_t i = 0; i < kMaxRows; ++i) {
      Question& question = questions.emplace_back();
      question.logits = RandomLogits(777, i % 2 == 0 ? 1.0f : 4.0f);
      question.options.seed = random_();
      question.position = i;
      question.options.temperature = 0.25f + 0.25f * static_cast<float>(i % 5);
      if (i % 2 == 0) question.options.top_k = 1 + random_() % 60;
      if (i % 3 == 0) question.options.top_p = 0.05f + 0.06f * static_cast<float>(i);
      if (i % 4 >= 2) question.options.min_p = 0.02f * static_cast<float>(i);
    }
    ExpectAsOnHost(questions);
  }
}

// Few different values: every border of a set lies among equals.
TEST_F(CudaSampleTest, CutsAmongEqualsByTheLowestId) {
  for (int round = 0; round < 6; ++round) {
    std::vector<Question> questions;
    for (uint32_t i = 0; i < kMaxRows; ++i) {
      Question& question = questions.emplace_back();
      question.logits.resize(600);
      for (float& logit : question.logits) logit = static_cast<float>(random_() % 4) - 1;
      question.options.seed = random_();
      question.options.temperature = 1;
      if (i % 2 == 0) question.options.top_k = 1 + random_() % 590;
      if (i % 4 < 2) question.options.top_p = 0.01f + 0.06f * static_cast<float>(i);
      if (i % 3 == 0) question.options.min_p = 0.2f;
      question.options.logprobs = i;
    }
    ExpectAsOnHost(questions);
  }
}

TEST_F(CudaSampleTest, BiasSuppressionAndPenaltiesComeFirst) {
  for (int round = 0; round < 4; ++round) {
    std::vector<Question> questions;
    for (uint32_t i = 0; i < kMaxRows; ++i) {
      Question& question = questions.emplace_back();
      question.logits = RandomLogits(300, 2);
      question.options.temperature = i % 2 == 0 ? 0.0f : 0.8f;
      question.options.seed = random_();
      for (TokenId id = i; id < 300; id += 37) question.options.logit_bias.emplace_back(id, 3.0f - 0.5f * i);
      for (TokenId id = 1; id < 300; id += 11) question.suppressed.push_back(id);
      if (i % 4 != 0) question.options.repetition_penalty = 1.3f;
      if (i % 3 == 0) question.options.presence_penalty = 0.7f;
      if (i % 5 < 3) question.options.frequency_penalty = 0.3f;
      for (int j = 0; j < 200; ++j) question.history.push_back(random_() % 300);
      question.history_prompt_tokens = 90;
    }
    ExpectAsOnHost(questions);
  }
}

TEST_F(CudaSampleTest, LogprobsAreThoseOfRawLogits) {
  std::vector<Question> questions;
  for (uint32_t i = 0; i < kMaxRows; ++i) {
    Question& question = questions.emplace_back();
    question.logits = RandomLogits(400, 3);
    question.options.temperature = 0.9f;
    question.options.seed = i;
    question.options.logit_bias = {{7, 5.0f}};
    question.options.logprobs = i % 2 == 0 ? 2 * i : 0;
    if (i % 3 == 0) question.given = 13 * i;
  }
  questions[4].logits[9] = questions[4].logits[200];
  ExpectAsOnHost(questions);
}

TEST_F(CudaSampleTest, WhatIsNoNumberIsNeverChosen) {
  std::vector<Question> questions(8);
  for (size_t i = 0; i < questions.size(); ++i) {
    Question& question = questions[i];
    question.logits = RandomLogits(260, 2);
    question.options.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    question.options.logprobs = 3;
    for (size_t id = i; id < 260; id += 3) question.logits[id] = std::nanf("");
    for (size_t id = i + 1; id < 260; id += 7) question.logits[id] = -kInf;
  }
  questions[2].logits[100] = kInf;
  questions[3].logits[100] = questions[3].logits[50] = kInf;
  questions[4].logits.assign(260, std::nanf(""));
  questions[5].logits.assign(260, -kInf);
  for (TokenId id = 0; id < 260; ++id) questions[6].suppressed.push_back(id);
  for (TokenId id = 0; id < 260; ++id) questions[7].options.logit_bias.emplace_back(id, -kInf);
  questions[4].options.logprobs = questions[5].options.logprobs = 0;
  ExpectAsOnHost(questions);
}

TEST_F(CudaSampleTest, ARowsAnswerDoesNotDependOnTheOthers) {
  std::vector<Question> questions;
  for (uint32_t i = 0; i < 9; ++i) {
    Question& question = questions.emplace_back();
    question.logits = RandomLogits(1025, 1.5f);
    question.options.seed = 77 + i;
    question.options.logprobs = 2;
  }
  const std::vector<SampleResult> together = Run(questions);
  for (size_t i = 0; i < questions.size(); ++i) {
    const SampleResult alone = Run({questions[i]}).front();
    EXPECT_EQ(alone.token, together[i].token);
    EXPECT_EQ(alone.sum, together[i].sum);
    EXPECT_EQ(alone.logits[1], together[i].logits[1]);
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda
