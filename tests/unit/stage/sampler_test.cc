#include "worker/stage/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kHuge = std::numeric_limits<float>::max();

struct Case {
  std::vector<float> logits;
  SamplingOptions options;
  std::vector<TokenId> history;
  uint32_t prompt_tokens = 0;
  std::vector<TokenId> suppressed;

  TokenId Sample(Sampler& sampler, uint32_t position = 0) const {
    SampleInput input;
    input.logits = logits;
    input.options = &options;
    input.history = history;
    input.history_prompt_tokens = prompt_tokens;
    input.suppressed_ids = suppressed;
    input.position = position;
    return sampler.Sample(input);
  }
  TokenId Sample() const {
    Sampler sampler(logits.size());
    return Sample(sampler);
  }
  // How often each token came in `draws` positions.
  std::map<TokenId, int> Count(int draws) const {
    Sampler sampler(logits.size());
    std::map<TokenId, int> counts;
    for (int position = 0; position < draws; ++position) ++counts[Sample(sampler, position)];
    return counts;
  }
  std::set<TokenId> Seen() const {
    std::set<TokenId> seen;
    for (const auto& [token, count] : Count(4000)) seen.insert(token);
    return seen;
  }
};

Case Greedy(std::vector<float> logits) {
  Case c;
  c.logits = std::move(logits);
  c.options.temperature = 0;
  return c;
}

Case OfProbabilities(std::vector<double> probabilities) {
  Case c;
  for (double p : probabilities) c.logits.push_back(static_cast<float>(std::log(p)));
  return c;
}

TEST(SamplerTest, GreedyTakesTheLargest) {
  EXPECT_EQ(Greedy({1, 3, 2}).Sample(), 1u);
}
TEST(SamplerTest, GreedyTakesTheLowestIdOnATie) {
  EXPECT_EQ(Greedy({1, 3, 0, 3, 3}).Sample(), 1u);
}
// The search goes by blocks and lanes: every place of the largest, and of an equal one behind it.
TEST(SamplerTest, GreedyFindsTheLargestWhereverItIs) {
  for (const size_t size : {1, 15, 16, 17, 1023, 1024, 1025, 3001}) {
    for (size_t at = 0; at < size; at += size < 100 ? 1 : 61) {
      std::vector<float> logits(size, -5);
      logits[size - 1] = logits[at] = -4;
      EXPECT_EQ(Greedy(logits).Sample(), at) << size;
      logits[size - 1] = -3;
      EXPECT_EQ(Greedy(logits).Sample(), size - 1) << size;
    }
  }
}

TEST(SamplerTest, GreedyNeverTakesNan) {
  EXPECT_EQ(Greedy({kNan, -3, kNan, -2, kNan}).Sample(), 3u);
}
TEST(SamplerTest, GreedyTakesInfinityAsTheLargest) {
  EXPECT_EQ(Greedy({1, kHuge / 2, kInf, 0}).Sample(), 2u);
}

TEST(SamplerTest, NothingToChooseFromGivesTheLargestFiniteLogitOrTokenZero) {
  EXPECT_EQ(Greedy({kNan, kNan, kNan}).Sample(), 0u);
  EXPECT_EQ(Greedy({-kInf, -kInf}).Sample(), 0u);
  Case all_suppressed = Greedy({kNan, 1, 5, 5, kInf});
  all_suppressed.suppressed = {0, 1, 2, 3, 4};
  EXPECT_EQ(all_suppressed.Sample(), 2u);
  all_suppressed.options.temperature = 1;
  EXPECT_EQ(all_suppressed.Sample(), 2u);
}

TEST(SamplerTest, BiasIsAddedAndSuppressionWins) {
  Case c = Greedy({1, 3, 2});
  c.options.logit_bias = {{0, 2.5f}, {1, -0.5f}};
  EXPECT_EQ(c.Sample(), 0u);
  c.suppressed = {0};
  EXPECT_EQ(c.Sample(), 1u);
  c.suppressed = {0, 1, 1};
  EXPECT_EQ(c.Sample(), 2u);
}

TEST(SamplerTest, RepetitionDividesPositiveAndMultipliesNegativeLogitsOncePerToken) {
  Case positive = Greedy({2, 1.5, -9});
  positive.options.repetition_penalty = 1.3f;
  positive.history = {0, 0, 0};
  EXPECT_EQ(positive.Sample(), 0u);  // 1.538, not 0.910
  positive.options.repetition_penalty = 1.4f;
  EXPECT_EQ(positive.Sample(), 1u);  // 1.429
  Case negative = Greedy({-1, -1.5, -9});
  negative.options.repetition_penalty = 1.6f;
  negative.history = {0};
  negative.prompt_tokens = 1;
  EXPECT_EQ(negative.Sample(), 1u) << "a prompt token counts, and -1.6 is less";
}

TEST(SamplerTest, PresenceAndFrequencyCountTheOutputOnly) {
  Case presence = Greedy({2, 1.5, 0});
  presence.options.presence_penalty = 0.6f;
  presence.history = {0, 0, 0};
  presence.prompt_tokens = 3;
  EXPECT_EQ(presence.Sample(), 0u) << "prompt tokens do not count";
  presence.prompt_tokens = 2;
  EXPECT_EQ(presence.Sample(), 1u);

  Case frequency = Greedy({2, 1.5, 0});
  frequency.options.frequency_penalty = 0.2f;
  frequency.history = {0, 0, 0, 0};
  frequency.prompt_tokens = 2;
  EXPECT_EQ(frequency.Sample(), 0u) << "2 - 2 x 0.2";
  frequency.prompt_tokens = 1;
  EXPECT_EQ(frequency.Sample(), 1u) << "2 - 3 x 0.2";
}

TEST(SamplerTest, PresenceCountsATokenOnceHoweverOften) {
  Case c = Greedy({2, 1.5, 0});
  c.options.presence_penalty = 0.4f;
  c.history = {0, 0, 0, 0};
  EXPECT_EQ(c.Sample(), 0u);
}

TEST(SamplerTest, TopKKeepsTheLargestAndTheLowerIdsOfATie) {
  Case c;
  c.logits = {0, 1, 2, 1, 1};
  c.options.top_k = 1;
  EXPECT_THAT(c.Seen(), ElementsAre(2));
  c.options.top_k = 3;
  EXPECT_THAT(c.Seen(), ElementsAre(1, 2, 3));
  c.options.top_k = 100;
  EXPECT_THAT(c.Seen(), ElementsAre(0, 1, 2, 3, 4));
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesIt) {
  Case c = OfProbabilities({0.15, 0.5, 0.05, 0.3});
  c.options.top_p = 1e-9f;
  EXPECT_THAT(c.Seen(), ElementsAre(1));
  c.options.top_p = 0.49f;
  EXPECT_THAT(c.Seen(), ElementsAre(1));
  c.options.top_p = 0.51f;
  EXPECT_THAT(c.Seen(), ElementsAre(1, 3));
  c.options.top_p = 0.81f;
  EXPECT_THAT(c.Seen(), ElementsAre(0, 1, 3));
  c.options.top_p = 0.96f;
  EXPECT_THAT(c.Seen(), ElementsAre(0, 1, 2, 3));
}

TEST(SamplerTest, TopPIsOfWhatTopKLeft) {
  Case c = OfProbabilities({0.4, 0.3, 0.2, 0.1});
  c.options.top_p = 0.55f;
  EXPECT_THAT(c.Seen(), ElementsAre(0, 1));
  c.options.top_k = 2;  // 0.4 of 0.7 is more than 0.55
  EXPECT_THAT(c.Seen(), ElementsAre(0));
}

TEST(SamplerTest, TopPIsOfTheTemperedProbabilities) {
  Case c = OfProbabilities({0.6, 0.4});
  c.options.top_p = 0.6f;
  c.options.temperature = 0.5f;  // 0.36 : 0.16
  EXPECT_THAT(c.Seen(), ElementsAre(0));
  c.options.temperature = 4;  // about 0.525 : 0.475
  EXPECT_THAT(c.Seen(), ElementsAre(0, 1));
}

TEST(SamplerTest, MinPIsRelativeToTheLargest) {
  Case c = OfProbabilities({0.1, 0.5, 0.15, 0.25});
  c.options.min_p = 0.49f;
  EXPECT_THAT(c.Seen(), ElementsAre(1, 3));
  c.options.min_p = 0.29f;
  EXPECT_THAT(c.Seen(), ElementsAre(1, 2, 3));
  c.options.min_p = 1;
  EXPECT_THAT(c.Seen(), ElementsAre(1));
}

TEST(SamplerTest, SuppressedAndImpossibleTokensAreNeverDrawn) {
  Case c;
  c.logits = {1, kNan, -kInf, 1, 1};
  c.suppressed = {3};
  EXPECT_THAT(c.Seen(), ElementsAre(0, 4));
}

double ChiSquare(const std::map<TokenId, int>& counts, const std::vector<double>& probabilities, int draws) {
  double chi_square = 0;
  for (size_t id = 0; id < probabilities.size(); ++id) {
    const double expected = probabilities[id] * draws;
    const double count = counts.count(id) ? counts.at(id) : 0;
    chi_square += (count - expected) * (count - expected) / expected;
  }
  return chi_square;
}

TEST(SamplerTest, DrawsWithTheProbabilitiesOfTheSoftmax) {
  const std::vector<double> probabilities = {0.02, 0.3, 0.08, 0.1, 0.25, 0.05, 0.05, 0.15};
  constexpr int kDraws = 40000;
  for (const bool sorted : {false, true}) {
    Case c = OfProbabilities(probabilities);
    c.options.seed = 7;
    if (sorted) c.options.top_p = 0.9999f;  // keeps all, but walks them in another order
    EXPECT_LT(ChiSquare(c.Count(kDraws), probabilities, kDraws), 24.3) << "7 degrees of freedom, p = 0.001";
  }
}

TEST(SamplerTest, TemperatureSharpensAndFlattens) {
  const std::vector<double> base = {0.6, 0.3, 0.1};
  constexpr int kDraws = 30000;
  for (const double temperature : {0.5, 2.0}) {
    std::vector<double> expected;
    for (double p : base) expected.push_back(std::pow(p, 1 / temperature));
    const double sum = expected[0] + expected[1] + expected[2];
    for (double& p : expected) p /= sum;
    Case c = OfProbabilities(base);
    c.options.temperature = static_cast<float>(temperature);
    EXPECT_LT(ChiSquare(c.Count(kDraws), expected, kDraws), 13.8) << "2 degrees of freedom, p = 0.001";
  }
}

TEST(SamplerTest, IsAFunctionOfItsInputAlone) {
  Case c = OfProbabilities({0.1, 0.2, 0.3, 0.15, 0.25});
  c.options.repetition_penalty = 1.2f;
  c.options.frequency_penalty = 0.3f;
  c.history = {1, 2, 2, 4};
  c.prompt_tokens = 1;
  Case other = OfProbabilities({0.5, 0.1, 0.1, 0.1, 0.2});
  other.options.presence_penalty = 2;
  other.history = {0, 0, 3, 4};
  other.suppressed = {2};
  Sampler used(5);
  for (uint32_t position = 0; position < 200; ++position) {
    other.Sample(used, position + 1);
    Sampler fresh(5);
    ASSERT_EQ(c.Sample(used, position), c.Sample(fresh, position)) << position;
  }
}

TEST(SamplerTest, SeedAndPositionChangeTheDraw) {
  Case c;
  c.logits.assign(1000, 0);
  Sampler sampler(1000);
  std::set<TokenId> by_position;
  std::set<TokenId> by_seed;
  for (uint32_t i = 0; i < 50; ++i) {
    c.options.seed = 0;
    by_position.insert(c.Sample(sampler, i));
    c.options.seed = i;
    by_seed.insert(c.Sample(sampler, 0));
  }
  EXPECT_GT(by_position.size(), 40u);
  EXPECT_GT(by_seed.size(), 40u);
}

TEST(SamplerTest, ExtremeOptionsGiveATokenThatIsAllowed) {
  const std::vector<std::function<void(SamplingOptions&)>> extremes = {
      [](SamplingOptions& o) { o.temperature = std::numeric_limits<float>::denorm_min(); },
      [](SamplingOptions& o) { o.temperature = kHuge; },
      [](SamplingOptions& o) { o.repetition_penalty = std::numeric_limits<float>::denorm_min(); },
      [](SamplingOptions& o) { o.repetition_penalty = kHuge; },
      [](SamplingOptions& o) {
        o.logit_bias = {{1, kHuge}, {2, -kHuge}, {4, kHuge}};
      },
      [](SamplingOptions& o) { o.top_p = std::numeric_limits<float>::denorm_min(); },
      [](SamplingOptions& o) { o.top_p = std::nextafter(1.0f, 0.0f); },
      [](SamplingOptions& o) { o.top_k = std::numeric_limits<uint32_t>::max(); },
      [](SamplingOptions& o) { o.frequency_penalty = -2; },
  };
  for (size_t i = 0; i < extremes.size(); ++i) {
    Case c;
    c.logits = {3, kHuge, -kHuge, 0, kInf, -1e-40f, kNan, -kInf};
    c.history = {0, 1, 1, 2, 3, 4, 4, 6, 7};
    c.suppressed = {3};
    extremes[i](c.options);
    for (TokenId token : c.Seen()) {
      EXPECT_LT(token, 6u) << "case " << i;
      EXPECT_NE(token, 3u) << "case " << i;
    }
  }
}

TEST(SamplerTest, LowestTemperatureIsGreedy) {
  Case c;
  c.logits = {3, 3.0001f, 2};
  c.options.temperature = std::numeric_limits<float>::denorm_min();
  EXPECT_THAT(c.Seen(), ElementsAre(1));
}

// The definition, with everything sorted and nothing clever.
TokenId NaiveSample(const Case& c, uint32_t position) {
  std::vector<std::pair<double, TokenId>> sorted;
  for (TokenId id = 0; id < c.logits.size(); ++id) sorted.emplace_back(-double{c.logits[id]}, id);
  std::sort(sorted.begin(), sorted.end());
  const double largest = -sorted[0].first;
  if (c.options.top_k > 0 && c.options.top_k < sorted.size()) sorted.resize(c.options.top_k);
  double total = 0;
  for (auto& [value, id] : sorted) total += value = std::exp((-value - largest) / c.options.temperature);
  size_t kept = 0;
  for (double reached = 0; kept < sorted.size() && reached < c.options.top_p * total;)
    reached += sorted[kept++].first;
  sorted.resize(std::max<size_t>(kept, 1));
  std::vector<std::pair<double, TokenId>> left;
  for (const auto& [weight, id] : sorted) {
    if (weight >= c.options.min_p) left.emplace_back(weight, id);
  }
  double sum = 0;
  for (const auto& [weight, id] : left) sum += weight;
  double target = sum * CounterRandom(c.options.seed, position);
  for (const auto& [weight, id] : left) {
    if ((target -= weight) < 0) return id;
  }
  return left.back().second;
}

TEST(SamplerTest, AgreesWithTheDefinitionOnRandomCases) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 3);
  constexpr uint32_t kVocabulary = 3000;
  Sampler sampler(kVocabulary);
  const std::vector<uint32_t> top_ks = {0, 1, 2, 50, 300, 2999, 3000};
  const std::vector<float> top_ps = {0.1f, 0.5f, 0.9f, 0.99f, 0.9999f};
  for (int i = 0; i < 300; ++i) {
    Case c;
    for (uint32_t id = 0; id < kVocabulary; ++id)
      c.logits.push_back(std::round(normal(random) * 64) / 64);  // ties
    c.options.top_k = top_ks[i % top_ks.size()];
    c.options.top_p = top_ps[i % top_ps.size()];
    c.options.min_p = i % 3 == 0 ? 0.01f : 0.0f;
    c.options.temperature = i % 2 == 0 ? 1.0f : 2.5f;
    c.options.seed = i;
    ASSERT_EQ(c.Sample(sampler, i), NaiveSample(c, i)) << "case " << i;
  }
}

}  // namespace
}  // namespace millrace
