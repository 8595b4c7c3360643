#include "common/clock_offset.h"

#include <cstdlib>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr int64_t kMicrosecond = 1000;
constexpr int64_t kSecond = 1000000000;

// An exchange at our time `at`, with a peer's clock that is `ahead` of ours.
ClockExchange Exchange(int64_t at, int64_t ahead, int64_t there, int64_t back, int64_t held = 5000) {
  return {at - there + ahead, at, at + held, at + held + back + ahead};
}

int64_t Offset(const ClockOffsetEstimator& estimator) {
  return absl::ToInt64Nanoseconds(estimator.offset().value());
}

TEST(ClockOffsetTest, KnowsNothingAtFirst) {
  EXPECT_FALSE(ClockOffsetEstimator().offset().has_value());
}

TEST(ClockOffsetTest, IsExactWhenBothWaysTakeTheSameTime) {
  for (const int64_t ahead : {int64_t{0}, int64_t{12345678901}, int64_t{-99}, -400000 * kSecond}) {
    ClockOffsetEstimator estimator;
    ASSERT_TRUE(estimator.Add(Exchange(7 * kSecond, ahead, 100, 100)));
    EXPECT_EQ(Offset(estimator), ahead);
  }
}

TEST(ClockOffsetTest, TakesTheExchangeThatWasUnderWayForTheShortestTime) {
  ClockOffsetEstimator estimator;
  ASSERT_TRUE(estimator.Add(Exchange(1 * kSecond, 500, 40 * kMicrosecond, 9000 * kMicrosecond)));
  ASSERT_TRUE(estimator.Add(Exchange(2 * kSecond, 500, 30 * kMicrosecond, 30 * kMicrosecond)));
  ASSERT_TRUE(estimator.Add(Exchange(3 * kSecond, 500, 8000 * kMicrosecond, 20 * kMicrosecond)));
  EXPECT_EQ(Offset(estimator), 500);
}

// One direction is delayed at random, often by milliseconds: its mean would be wrong by milliseconds, too.
TEST(ClockOffsetTest, SurvivesJitterOfOneDirection) {
  std::mt19937 random(1);
  std::exponential_distribution<double> delay(1.0 / 3e6);
  ClockOffsetEstimator estimator;
  for (int i = 0; i < 100; ++i) {
    const auto there = static_cast<int64_t>(50000 + delay(random));
    ASSERT_TRUE(estimator.Add(Exchange(i * kSecond / 2, -7 * kSecond, there, 50000)));
    if (i < 15) continue;
    EXPECT_LT(std::abs(Offset(estimator) + 7 * kSecond), kSecond / 1000) << i;
  }
}

TEST(ClockOffsetTest, FollowsADrift) {
  for (const double drift : {40e-6, -40e-6}) {
    std::mt19937 random(2);
    std::exponential_distribution<double> delay(1.0 / 200e3);
    ClockOffsetEstimator estimator;
    for (int i = 0; i < 1000; ++i) {
      const int64_t at = i * kSecond / 2;
      const auto ahead = static_cast<int64_t>(drift * static_cast<double>(at));
      const auto there = static_cast<int64_t>(50000 + delay(random));
      const auto back = static_cast<int64_t>(50000 + delay(random));
      ASSERT_TRUE(estimator.Add(Exchange(at, ahead, there, back)));
      if (i < 15) continue;
      EXPECT_LT(std::abs(Offset(estimator) - ahead), 300 * kMicrosecond) << i;
    }
  }
}

TEST(ClockOffsetTest, ForgetsOldExchanges) {
  ClockOffsetEstimator estimator;
  ASSERT_TRUE(estimator.Add(Exchange(0, 1000, 0, 0)));
  for (size_t i = 0; i < ClockOffsetEstimator::kExchanges; ++i) {
    ASSERT_TRUE(estimator.Add(Exchange(static_cast<int64_t>(i), 70 * kMicrosecond, 1000, 1000)));
  }
  EXPECT_EQ(Offset(estimator), 70 * kMicrosecond);
}

TEST(ClockOffsetTest, RefusesTimesThatCannotBe) {
  ClockOffsetEstimator estimator;
  const int64_t far = ClockOffsetEstimator::kLongestWay / absl::Nanoseconds(1);
  constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  const ClockExchange impossible[] = {
      {100, 50, 60, 99},                 // answered before it was asked
      {100, 50, 60, 105},                // we held it for longer than it was under way
      {100, 60, 50, 200},                // our own times are in the wrong order
      Exchange(5 * kSecond, 0, far, 1),  // took too long
      {kMin, 1, 2, 3},
      {1, 2, 3, kMax},  //
      {kMin, 1, 2, kMax},
      {1, kMin, kMax, 2},  //
      {kMax, kMin, 0, 0},
      {kMin, kMin, kMin, kMin},
      {kMax, kMax, kMax, kMax},
  };
  for (const ClockExchange& exchange : impossible) EXPECT_FALSE(estimator.Add(exchange));
  EXPECT_FALSE(estimator.offset().has_value());
  EXPECT_TRUE(estimator.Add(Exchange(5 * kSecond, 3, far / 2, far / 2)));
  EXPECT_EQ(Offset(estimator), 3);
}

}  // namespace
}  // namespace millrace
