#include "coordinator/planner/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

LayerCosts Uniform(size_t layers, double first = 0, double last = 0) {
  return {std::vector<double>(layers, 1.0), first, last};
}

double Dearest(const LayerCosts& costs, const std::vector<LayerRange>& ranges) {
  double dearest = 0;
  for (size_t s = 0; s < ranges.size(); ++s) {
    double cost = (s == 0 ? costs.first_stage : 0) + (s + 1 == ranges.size() ? costs.last_stage : 0);
    for (uint32_t i = 0; i < ranges[s].count; ++i) cost += costs.layers[ranges[s].first + i];
    dearest = std::max(dearest, cost);
  }
  return dearest;
}

// The least cost of the dearest stage over all placements, by trying them all.
double BestByTrial(const LayerCosts& costs, uint32_t stages, uint32_t begin,
                   std::vector<LayerRange>& chosen) {
  const uint32_t layers = static_cast<uint32_t>(costs.layers.size());
  if (chosen.size() + 1 == stages) {
    chosen.push_back({begin, layers - begin});
    const double cost = Dearest(costs, chosen);
    chosen.pop_back();
    return cost;
  }
  double best = 1e300;
  const uint32_t after = stages - static_cast<uint32_t>(chosen.size()) - 1;
  for (uint32_t end = begin + 1; end + after <= layers; ++end) {
    chosen.push_back({begin, end - begin});
    best = std::min(best, BestByTrial(costs, stages, end, chosen));
    chosen.pop_back();
  }
  return best;
}

TEST(PlacementTest, OneStageTakesEverything) {
  const auto ranges = PlaceLayers(Uniform(5), 1);
  ASSERT_TRUE(ranges.ok());
  EXPECT_THAT(*ranges, ElementsAre(LayerRange{0, 5}));
}

TEST(PlacementTest, AsManyStagesAsLayersGivesOneEach) {
  const auto ranges = PlaceLayers(Uniform(3), 3);
  ASSERT_TRUE(ranges.ok());
  EXPECT_THAT(*ranges, ElementsAre(LayerRange{0, 1}, LayerRange{1, 1}, LayerRange{2, 1}));
}

TEST(PlacementTest, TheOutputMatrixLightensTheLastStage) {
  const auto ranges = PlaceLayers(Uniform(30, 0, 8), 2);
  ASSERT_TRUE(ranges.ok());
  EXPECT_THAT(*ranges, ElementsAre(LayerRange{0, 19}, LayerRange{19, 11}));
}

TEST(PlacementTest, NoPlacementIsBetter) {
  std::mt19937 rng(7);
  std::uniform_real_distribution<double> cost(0.1, 3.0);
  for (int trial = 0; trial < 200; ++trial) {
    LayerCosts costs{std::vector<double>(1 + rng() % 9), cost(rng), cost(rng)};
    for (double& layer : costs.layers) layer = cost(rng);
    const uint32_t stages = 1 + static_cast<uint32_t>(rng() % costs.layers.size());
    const auto ranges = PlaceLayers(costs, stages);
    ASSERT_TRUE(ranges.ok());
    std::vector<LayerRange> chosen;
    EXPECT_NEAR(Dearest(costs, *ranges), BestByTrial(costs, stages, 0, chosen), 1e-9) << "trial " << trial;
    uint32_t next = 0;
    for (const LayerRange& range : *ranges) {
      EXPECT_EQ(range.first, next);
      EXPECT_GE(range.count, 1u);
      next += range.count;
    }
    EXPECT_EQ(next, costs.layers.size());
  }
}

TEST(PlacementTest, RefusesMoreStagesThanLayersAndNone) {
  EXPECT_EQ(PlaceLayers(Uniform(3), 4).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PlaceLayers(Uniform(3), 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PlacementTest, TakesTheCountsOfTheUser) {
  const auto ranges = PlaceByCounts({10, 20}, 30, 2);
  ASSERT_TRUE(ranges.ok());
  EXPECT_THAT(*ranges, ElementsAre(LayerRange{0, 10}, LayerRange{10, 20}));
}

TEST(PlacementTest, SaysWhatIsWrongWithTheCountsOfTheUser) {
  EXPECT_THAT(PlaceByCounts({10, 21}, 30, 2).status().message(), HasSubstr("add up to 31"));
  EXPECT_THAT(PlaceByCounts({10, 10}, 30, 2).status().message(), HasSubstr("add up to 20"));
  EXPECT_THAT(PlaceByCounts({30}, 30, 2).status().message(), HasSubstr("names 1 stages"));
  EXPECT_THAT(PlaceByCounts({0, 30}, 30, 2).status().message(), HasSubstr("a stage of 0 layers"));
  EXPECT_THAT(PlaceByCounts({INT64_MAX, 1}, 30, 2).status().message(), HasSubstr("each takes 1 to 30"));
}

}  // namespace
}  // namespace millrace
