#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/stage/sampler.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> RandomLogits(size_t count, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(5, 4);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

float Expected(const std::vector<float>& logits, TokenId token) {
  long double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<long double>(logit));
  return static_cast<float>(logits[token] - std::log(sum));
}

TEST(LogprobsTest, IsTheLogSoftmaxRoundedOnce) {
  const std::vector<float> logits = RandomLogits(50000, 1);
  for (TokenId token : {0u, 17u, 49999u}) {
    EXPECT_FLOAT_EQ(ComputeLogprobs(logits, token, 0).logprob, Expected(logits, token));
  }
}

TEST(LogprobsTest, ReportsTheChosenTokenAndNothingElseUnlessAsked) {
  const TokenLogprobs result = ComputeLogprobs(RandomLogits(10, 2), 4, 0);
  EXPECT_EQ(result.token, 4u);
  EXPECT_THAT(result.top, IsEmpty());
}

TEST(LogprobsTest, TopIsBestFirstAndTheLowerIdOnATie) {
  const std::vector<float> logits = {1, 4, 3, 4, 2, 3, 4};
  const TokenLogprobs result = ComputeLogprobs(logits, 0, 5);
  const float best = Expected(logits, 1);
  const float second = Expected(logits, 2);
  EXPECT_THAT(result.top,
              ElementsAre(Pair(1, best), Pair(3, best), Pair(6, best), Pair(2, second), Pair(5, second)));
  EXPECT_EQ(result.logprob, Expected(logits, 0));
}

TEST(LogprobsTest, TopAgreesWithAFullSort) {
  const std::vector<float> logits = RandomLogits(5000, 3);
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  const TokenLogprobs result = ComputeLogprobs(logits, 0, 32);
  ASSERT_EQ(result.top.size(), 32u);
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(result.top[i].first, ids[i]);
    EXPECT_FLOAT_EQ(result.top[i].second, Expected(logits, ids[i]));
  }
}

TEST(LogprobsTest, DoesNotDependOnHowManyAlternativesAreAsked) {
  const std::vector<float> logits = RandomLogits(1000, 4);
  EXPECT_EQ(ComputeLogprobs(logits, 5, 0).logprob, ComputeLogprobs(logits, 5, 32).logprob);
}

TEST(LogprobsTest, GivesNoMoreAlternativesThanTokens) {
  EXPECT_EQ(ComputeLogprobs(std::vector<float>{1, 2, 3}, 0, 32).top.size(), 3u);
}

TEST(LogprobsTest, SurvivesLargeLogits) {
  const TokenLogprobs result = ComputeLogprobs(std::vector<float>{1e30f, 1e30f, -1e30f}, 0, 2);
  EXPECT_FLOAT_EQ(result.logprob, -std::log(2.0f));
  EXPECT_THAT(result.top, ElementsAre(Pair(0, result.logprob), Pair(1, result.logprob)));
}

TEST(LogprobsTest, TakesNanAsImpossible) {
  const TokenLogprobs result = ComputeLogprobs(std::vector<float>{kNan, 1, kNan, 1}, 0, 4);
  EXPECT_EQ(result.logprob, -kInf);
  EXPECT_THAT(result.top, ElementsAre(Pair(1, -std::log(2.0f)), Pair(3, -std::log(2.0f)), Pair(0, -kInf),
                                      Pair(2, -kInf)));
}

TEST(LogprobsTest, HasNoNanEvenWithoutAPossibleToken) {
  EXPECT_EQ(ComputeLogprobs(std::vector<float>{kNan, -kInf}, 1, 2).logprob, -kInf);
  EXPECT_EQ(ComputeLogprobs(std::vector<float>{kInf, 0}, 0, 2).logprob, 0.0f);
}

}  // namespace
}  // namespace millrace
