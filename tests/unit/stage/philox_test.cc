#include "worker/stage/philox.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/stage/sampler.h"

namespace millrace {
namespace {

using Words = std::array<uint32_t, 4>;

// Known answers published with Random123 (kat_vectors, philox4x32, 10 rounds).
TEST(PhiloxTest, GivesThePublishedAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The number belongs to the protocol: a cluster that restarts with another build must go on with the same
// tokens.
TEST(CounterRandomTest, IsThe53HighBitsOfTheFirstTwoWords) {
  EXPECT_EQ(CounterRandom(0, 0), static_cast<double>(0xe169c58d6627e8d5 >> 11) / 9007199254740992.0);
}

TEST(CounterRandomTest, UsesAllBitsOfSeedAndPosition) {
  std::set<double> seen;
  for (int bit = 0; bit < 64; ++bit) {
    seen.insert(CounterRandom(uint64_t{1} << bit, 0));
    seen.insert(CounterRandom(0, uint64_t{1} << bit));
  }
  EXPECT_EQ(seen.size(), 128u);
}

TEST(CounterRandomTest, IsUniform) {
  constexpr int kBins = 64;
  constexpr int kDraws = 64000;
  std::array<int, kBins> counts{};
  for (int i = 0; i < kDraws; ++i) {
    const double number = CounterRandom(42, i);
    ASSERT_GE(number, 0.0);
    ASSERT_LT(number, 1.0);
    ++counts[static_cast<int>(number * kBins)];
  }
  double chi_square = 0;
  for (int count : counts)
    chi_square += (count - kDraws / kBins) * (count - kDraws / kBins) / (1.0 * kDraws / kBins);
  EXPECT_LT(chi_square, 103.4);  // 63 degrees of freedom, p = 0.001
  EXPECT_GT(chi_square, 33.9);   // too even is not random either, p = 0.999
}

}  // namespace
}  // namespace millrace
