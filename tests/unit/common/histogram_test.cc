#include "common/histogram.h"

#include <cmath>

#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr std::array<double, 3> kBounds = {1, 2, 5};

TEST(HistogramTest, CountsUpToEachBound) {
  Histogram histogram(kBounds);
  for (double value : {0.5, 1.0, 1.5, 5.0, 6.0, 1e9}) histogram.Observe(value);
  EXPECT_EQ(histogram.bucket(0), 2u);
  EXPECT_EQ(histogram.bucket(1), 1u);
  EXPECT_EQ(histogram.bucket(2), 1u);
  EXPECT_EQ(histogram.bucket(3), 2u);
  EXPECT_EQ(histogram.count(), 6u);
  EXPECT_DOUBLE_EQ(histogram.sum(), 1e9 + 14);
}

TEST(HistogramTest, WhatIsNoSizeIsZero) {
  Histogram histogram(kBounds);
  histogram.Observe(-3);
  histogram.Observe(std::nan(""));
  EXPECT_EQ(histogram.bucket(0), 2u);
  EXPECT_EQ(histogram.sum(), 0);
}

TEST(HistogramTest, BoundsAscend) {
  for (absl::Span<const double> bounds : {absl::MakeConstSpan(kHopBounds), absl::MakeConstSpan(kTokenBounds),
                                          absl::MakeConstSpan(kRequestBounds)}) {
    EXPECT_LE(bounds.size(), Histogram::kMaxBounds);
    for (size_t i = 1; i < bounds.size(); ++i) EXPECT_LT(bounds[i - 1], bounds[i]);
  }
}

}  // namespace
}  // namespace millrace
