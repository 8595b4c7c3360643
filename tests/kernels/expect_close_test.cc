#include "tests/testing/expect_close.h"

#include <limits>

namespace millrace::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
const Tolerance kLoose{1e30, 1e30};

TEST(ExpectCloseTest, AcceptsWhatIsWithinTheTolerance) {
  EXPECT_TRUE(IsClose({1.0f, -2.0f}, {1.05f, -2.05f}, Tolerance{0.06, 0}));
  EXPECT_TRUE(IsClose({100.0f}, {101.0f}, Tolerance{0, 0.011}));
  EXPECT_TRUE(IsClose({}, {}, Tolerance{}));
}

TEST(ExpectCloseTest, RefusesWhatIsBeyondTheTolerance) {
  EXPECT_FALSE(IsClose({1.0f, 2.0f}, {1.0f, 2.1f}, Tolerance{0.06, 0}));
  EXPECT_FALSE(IsClose({100.0f}, {102.0f}, Tolerance{0, 0.011}));
  EXPECT_FALSE(IsClose({1.0f, 2.0f}, {1.0f, 2.1f}, std::vector<double>{1.0, 0.06}));
}

TEST(ExpectCloseTest, RefusesNanOnEitherSideAndOnBoth) {
  EXPECT_FALSE(IsClose({kNan}, {1.0f}, kLoose));
  EXPECT_FALSE(IsClose({1.0f}, {kNan}, kLoose));
  EXPECT_FALSE(IsClose({kNan}, {kNan}, kLoose));
  EXPECT_FALSE(IsClose({1.0f}, {1.0f}, std::vector<double>{static_cast<double>(kNan)}));
}

TEST(ExpectCloseTest, AcceptsOnlyTheSameInfinity) {
  EXPECT_TRUE(IsClose({kInf, -kInf}, {kInf, -kInf}, Tolerance{}));
  EXPECT_FALSE(IsClose({kInf}, {-kInf}, kLoose));
  EXPECT_FALSE(IsClose({kInf}, {1.0f}, kLoose));
  EXPECT_FALSE(IsClose({1.0f}, {kInf}, kLoose));
}

TEST(ExpectCloseTest, RefusesOutputThatWasNotWritten) {
  std::vector<float> out = Poison(3);
  out[0] = out[2] = 1.0f;
  EXPECT_FALSE(IsClose(out, {1.0f, 1.0f, 1.0f}, kLoose));
  EXPECT_FALSE(IsClose(Poison(2), Poison(2), kLoose));
}

TEST(ExpectCloseTest, TellsNegativesApart) {
  EXPECT_FALSE(IsClose({-1.0f}, {1.0f}, Tolerance{0, 0.1}));
  EXPECT_FALSE(IsClose({-3.0f}, {-1.0f}, Tolerance{0.1, 0.1}));
  EXPECT_TRUE(IsClose({-3.0f}, {-3.01f}, Tolerance{0, 0.1}));
}

TEST(ExpectCloseTest, RefusesOtherLengths) {
  EXPECT_FALSE(IsClose({1.0f}, {1.0f, 1.0f}, kLoose));
  EXPECT_FALSE(IsClose({1.0f}, {1.0f}, std::vector<double>{}));
  EXPECT_FALSE(IsBitEqual({1.0f}, {1.0f, 1.0f}));
}

TEST(ExpectCloseTest, ComparesBits) {
  EXPECT_TRUE(IsBitEqual({1.0f, -0.0f, kInf}, {1.0f, -0.0f, kInf}));
  EXPECT_FALSE(IsBitEqual({0.0f}, {-0.0f}));
  EXPECT_FALSE(IsBitEqual({1.0f}, {1.0000001f}));
  EXPECT_FALSE(IsBitEqual({kNan}, {kNan}));
}

}  // namespace
}  // namespace millrace::testing
