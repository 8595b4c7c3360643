#include "coordinator/scheduler/cost_model.h"

#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace millrace {
namespace {

// A stage as the model supposes it: 2 ms, 0.4 ms a decode row, 0.2 ms a prefill row, attention, head.
double Linear(const BatchFeatures& f) {
  return 2e-3 + 4e-4 * f.decode_rows + 2e-4 * f.prefill_rows + 1e-7 * f.decode_attention +
         5e-8 * f.prefill_attention + 3e-4 * f.sampled_rows;
}

class Load {
 public:
  explicit Load(uint64_t seed) : random_(seed) {}
  uint64_t Random(uint64_t n) { return random_() % n; }
  // Decodes, and in half of the cases a prefill chunk.
  BatchFeatures Next() {
    BatchFeatures features;
    for (uint64_t n = Random(17); n > 0; --n)
      features += BatchFeatures::Decode(static_cast<double>(1 + Random(1000)));
    if (features.rows() == 0 || Random(2) == 0) {
      features += BatchFeatures::Prefill(static_cast<double>(Random(2000)),
                                         static_cast<double>(1 + Random(128)), Random(3) == 0);
    }
    return features;
  }
  double Noise(double share) { return 1 + share * (static_cast<double>(Random(2001)) / 1000 - 1); }

 private:
  std::mt19937_64 random_;
};

// Mean error of predictions for microbatches that the model has not seen.
template <typename Truth>
double ErrorOn(const StageCostModel& model, Truth truth, uint64_t seed) {
  Load load(seed);
  double sum = 0;
  for (int i = 0; i < 1000; ++i) {
    const BatchFeatures features = load.Next();
    sum += std::abs(model.Seconds(features) / truth(features) - 1);
  }
  return sum / 1000;
}

template <typename Truth>
void Teach(StageCostModel& model, Truth truth, int count, uint64_t seed = 1, double noise = 0.03) {
  Load load(seed);
  for (int i = 0; i < count; ++i) {
    const BatchFeatures features = load.Next();
    model.Observe(features, truth(features) * load.Noise(noise));
  }
}

TEST(StageCostModelTest, LearnsAStageOfWhichNothingIsKnown) {
  StageCostModel model;
  EXPECT_FALSE(model.known());
  EXPECT_FALSE(model.error().has_value());
  Teach(model, Linear, 300);
  EXPECT_TRUE(model.known());
  EXPECT_LT(ErrorOn(model, Linear, 99), 0.01);
  EXPECT_LT(*model.error(), 0.03);
  EXPECT_GT(*model.error(), 0.005) << "the noise must be seen";
}

TEST(StageCostModelTest, LearnsAtAnyScale) {
  for (const double scale : {1e-3, 1e3}) {
    const auto truth = [&](const BatchFeatures& f) { return scale * Linear(f); };
    StageCostModel model;
    Teach(model, truth, 300);
    EXPECT_LT(ErrorOn(model, truth, 99), 0.015) << scale;
  }
}

TEST(StageCostModelTest, TakesTimeToGoWithRowsAfterOneObservation) {
  StageCostModel model;
  model.Observe(BatchFeatures::Prefill(0, 32, false), 0.064);
  EXPECT_NEAR(model.Seconds(BatchFeatures::Prefill(0, 32, false)), 0.064, 1e-9);
  EXPECT_NEAR(model.Seconds(BatchFeatures::Prefill(0, 8, false)), 0.016, 1e-9);
}

StageCost Prior() {
  StageCost prior;
  prior.fixed = 2e-3;
  prior.rows = {{1, 4e-4}, {8, 2e-3}, {128, 2.6e-2}};
  prior.decode_attention = 1e-7;
  prior.prefill_attention = 5e-8;
  prior.sampled = {{1, 3e-4}, {16, 4e-3}};
  return prior;
}

TEST(StageCostModelTest, PredictsByThePriorBeforeAnythingRan) {
  const StageCostModel model(Prior());
  EXPECT_TRUE(model.known());
  const BatchFeatures features = BatchFeatures::Prefill(100, 64, true);
  EXPECT_DOUBLE_EQ(model.Seconds(features), Prior().Seconds(features));
}

TEST(StageCostModelTest, CorrectsAPriorThatIsWrong) {
  const auto truth = [](const BatchFeatures& f) { return 1.3 * Prior().Seconds(f) + 1e-3; };
  StageCostModel model(Prior());
  EXPECT_GT(ErrorOn(model, truth, 99), 0.2);
  Teach(model, truth, 200);
  EXPECT_LT(ErrorOn(model, truth, 99), 0.02);
}

TEST(StageCostModelTest, FollowsAStageThatBecomesSlower) {
  StageCostModel model;
  Teach(model, Linear, 300);
  const auto slower = [](const BatchFeatures& f) { return 1.8 * Linear(f); };
  Teach(model, slower, 150, 2);
  EXPECT_LT(ErrorOn(model, slower, 99), 0.015);
}

TEST(StageCostModelTest, LearnsFromFewMicrobatches) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    StageCostModel model;
    Teach(model, Linear, 20, seed);
    EXPECT_LT(ErrorOn(model, Linear, 99), 0.025) << seed;
  }
}

TEST(StageCostModelTest, IsNotSpoiltByAPreemptedRun) {
  for (const double factor : {2.0, 3.0, 50.0}) {
    for (uint64_t seed = 1; seed <= 30; ++seed) {
      StageCostModel model;
      Teach(model, Linear, 100, seed);
      const BatchFeatures features = Load(1000 + seed).Next();
      model.Observe(features, factor * Linear(features));
      // Which loads a seed gives depends on the compiler, and with them what one run twice as long does.
      EXPECT_LT(ErrorOn(model, Linear, 99), 0.05) << factor << " times as long, " << seed;
    }
  }
}

// Decodes at one length for long: what prefill costs must neither be forgotten nor run away.
TEST(StageCostModelTest, KeepsWhatNothingExcites) {
  StageCostModel model;
  Teach(model, Linear, 300);
  Load load(7);
  BatchFeatures decodes;
  for (int i = 0; i < 8; ++i) decodes += BatchFeatures::Decode(300);
  for (int i = 0; i < 20000; ++i) model.Observe(decodes, Linear(decodes) * load.Noise(0.05));
  const BatchFeatures chunk = BatchFeatures::Prefill(0, 128, true);
  EXPECT_NEAR(model.Seconds(chunk) / Linear(chunk), 1, 0.1);
  Teach(model, Linear, 50, 3);
  EXPECT_LT(ErrorOn(model, Linear, 99), 0.03);
}

TEST(StageCostModelTest, IgnoresTimesThatCannotBe) {
  StageCostModel model;
  Teach(model, Linear, 100);
  const BatchFeatures features = BatchFeatures::Decode(10);
  const double before = model.Seconds(features);
  for (const double bad : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity(), 1e9}) {
    model.Observe(features, bad);
  }
  EXPECT_EQ(model.Seconds(features), before);
}

// Whatever comes from a worker: predictions stay numbers, positive and finite.
TEST(StageCostModelTest, StaysFiniteWhateverIsObserved) {
  std::mt19937_64 random(11);
  const auto odd = [&] {
    const double values[] = {1e-12, 1e-6, 1e-3, 1, 3599, std::nan(""), -1, 1e300, 5e-324};
    return values[random() % 9];
  };
  for (int run = 0; run < 50; ++run) {
    StageCostModel model = run % 2 == 0 ? StageCostModel() : StageCostModel(Prior());
    Load load(static_cast<uint64_t>(run));
    for (int i = 0; i < 500; ++i) {
      BatchFeatures features = load.Next();
      if (random() % 10 == 0) features += BatchFeatures::Prefill(1 << 24, 4096, true);
      model.Observe(features, odd());
      if (!model.known()) continue;
      const double seconds = model.Seconds(load.Next());
      ASSERT_TRUE(seconds > 0 && seconds <= 3600) << seconds;
      ASSERT_TRUE(!model.error().has_value() || std::isfinite(*model.error()));
    }
  }
}

TEST(SlowestStageCostTest, IsThatOfTheStageThatTakesLongest) {
  StageCost slow = Prior();
  slow.fixed = 0.5;
  const std::vector<StageCostModel> stages = {StageCostModel(Prior()), StageCostModel(slow),
                                              StageCostModel(Prior())};
  const BatchFeatures features = BatchFeatures::Decode(10);
  EXPECT_DOUBLE_EQ(SlowestStageCost(stages)(features), slow.Seconds(features));
}

TEST(SlowestStageCostTest, CountsRowsWithoutModels) {
  BatchFeatures features = BatchFeatures::Decode(500);
  features += BatchFeatures::Prefill(1000, 12, true);
  EXPECT_EQ(SlowestStageCost()(features), 13);
}

}  // namespace
}  // namespace millrace
