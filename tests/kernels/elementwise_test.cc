// RmsNorm, Rope and SwiGlu.
#include <cmath>

#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels {
namespace {

using millrace::testing::IsBitEqual;
using millrace::testing::IsClose;
using millrace::testing::Tolerance;

const std::vector<size_t> kLengths = {1, 2, 15, 16, 17, 31, 32, 33, 96, 576, 577};

std::vector<float> RunRmsNorm(const Backend& backend, const std::vector<float>& x,
                              const std::vector<float>& weight) {
  GuardedFloats in(x), w(weight), out(x.size());
  backend.RmsNorm({in.data(), w.data(), out.data(), x.size() / weight.size(), weight.size(), 1e-5f});
  EXPECT_TRUE(in.Intact() && w.Intact() && out.Intact());
  EXPECT_TRUE(IsBitEqual(in.values(), x));
  return out.values();
}

std::vector<float> RunSwiGlu(const Backend& backend, const std::vector<float>& gate,
                             const std::vector<float>& up) {
  GuardedFloats g(gate), u(up), out(gate.size());
  backend.SwiGlu({g.data(), u.data(), out.data(), gate.size()});
  EXPECT_TRUE(g.Intact() && u.Intact() && out.Intact());
  return out.values();
}

struct RopeShape {
  size_t rows, heads, head_size, rope_dims;
};
const std::vector<RopeShape> kRopeShapes = {
    {1, 1, 2, 2}, {3, 2, 6, 4}, {5, 3, 64, 64}, {2, 5, 18, 18}, {4, 2, 80, 32}};

std::vector<float> CosSin(size_t positions, size_t rope_dims) {
  std::vector<float> table;
  for (size_t p = 0; p < positions; ++p) {
    for (size_t i = 0; i < rope_dims / 2; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(i) / rope_dims);
      table.push_back(static_cast<float>(std::cos(angle)));
      table.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return table;
}

std::vector<float> RunRope(const Backend& backend, const RopeShape& s, const std::vector<float>& x) {
  GuardedFloats inout(x), table(CosSin(50, s.rope_dims));
  std::vector<uint32_t> positions;
  for (size_t r = 0; r < s.rows; ++r) positions.push_back(static_cast<uint32_t>((r * 17 + 3) % 50));
  backend.Rope({inout.data(), positions.data(), s.rows, s.heads, s.head_size, s.rope_dims, table.data()});
  EXPECT_TRUE(inout.Intact() && table.Intact());
  return inout.values();
}

class ElementwiseTest : public ::testing::TestWithParam<std::string> {
 protected:
  const std::unique_ptr<Backend> backend_ = MakeBackend(GetParam());
};

TEST_P(ElementwiseTest, RmsNormIsCloseToTheFormula) {
  for (const size_t columns : kLengths) {
    const size_t rows = 3;
    const std::vector<float> x = RandomFloats(rows * columns, 1, 30.0f);
    const std::vector<float> weight = RandomFloats(columns, 2, 2.0f);
    std::vector<float> expected(x.size());
    for (size_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (size_t i = 0; i < columns; ++i) squares += std::pow(static_cast<double>(x[r * columns + i]), 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(columns) + 1e-5);
      for (size_t i = 0; i < columns; ++i) {
        expected[r * columns + i] = static_cast<float>(x[r * columns + i] * scale * weight[i]);
      }
    }
    // Half of the sum's relative error (columns roundings), and a few more.
    const Tolerance tolerance{0, (static_cast<double>(columns) / 2 + 8) * 0x1p-24};
    EXPECT_TRUE(IsClose(RunRmsNorm(*backend_, x, weight), expected, tolerance)) << columns;
  }
}

TEST_P(ElementwiseTest, RmsNormOfZerosIsZeroAndMayWriteOverItsInput) {
  const std::vector<float> weight(33, 1.0f);
  EXPECT_TRUE(IsBitEqual(RunRmsNorm(*backend_, std::vector<float>(66), weight), std::vector<float>(66)));
  const std::vector<float> x = RandomFloats(66, 3);
  GuardedFloats inout(x), w(weight);
  backend_->RmsNorm({inout.data(), w.data(), inout.data(), 2, 33, 1e-5f});
  EXPECT_TRUE(IsBitEqual(inout.values(), RunRmsNorm(*backend_, x, weight)));
}

TEST_P(ElementwiseTest, RmsNormGivesARowTheSameBitsAloneAndInABatch) {
  const std::vector<float> weight = RandomFloats(577, 2), x = RandomFloats(5 * 577, 4);
  const std::vector<float> whole = RunRmsNorm(*backend_, x, weight);
  for (std::ptrdiff_t r = 0; r < 5; ++r) {
    const std::vector<float> row(x.begin() + r * 577, x.begin() + (r + 1) * 577);
    const std::vector<float> expected(whole.begin() + r * 577, whole.begin() + (r + 1) * 577);
    EXPECT_TRUE(IsBitEqual(RunRmsNorm(*backend_, row, weight), expected));
  }
}

TEST_P(ElementwiseTest, SwiGluIsCloseToTheFormula) {
  for (const size_t count : kLengths) {
    const std::vector<float> gate = RandomFloats(count, 5, 20.0f), up = RandomFloats(count, 6, 3.0f);
    std::vector<float> expected;
    for (size_t i = 0; i < count; ++i) {
      expected.push_back(static_cast<float>(gate[i] / (1 + std::exp(-static_cast<double>(gate[i]))) * up[i]));
    }
    EXPECT_TRUE(IsClose(RunSwiGlu(*backend_, gate, up), expected, Tolerance{1e-36, 5e-7})) << count;
  }
}

TEST_P(ElementwiseTest, SwiGluHoldsOverTheWholeRangeOfExp) {
  std::vector<float> gate, expected;
  for (float v = -120.0f; v <= 120.0f; v += 0.01f) {
    gate.push_back(v);
    expected.push_back(static_cast<float>(v / (1 + std::exp(-static_cast<double>(v)))));
  }
  for (const float v : {0.0f, 1e-30f, -1e-30f, 1e30f, 3e38f, std::numeric_limits<float>::infinity()}) {
    gate.push_back(v);
    expected.push_back(v > 0 ? (v > 1 ? v : v / 2) : v / 2);
  }
  const std::vector<float> ones(gate.size(), 1.0f);
  EXPECT_TRUE(IsClose(RunSwiGlu(*backend_, gate, ones), expected, Tolerance{1e-36, 5e-7}));
  EXPECT_EQ(RunSwiGlu(*backend_, {-3e38f}, {1.0f})[0], 0.0f);
}

TEST_P(ElementwiseTest, SwiGluPassesNanOnAndMayWriteOverItsInputs) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(RunSwiGlu(*backend_, {nan}, {1.0f})[0]));
  EXPECT_TRUE(std::isnan(RunSwiGlu(*backend_, {1.0f}, {nan})[0]));
  const std::vector<float> gate = RandomFloats(35, 7), up = RandomFloats(35, 8);
  const std::vector<float> expected = RunSwiGlu(*backend_, gate, up);
  GuardedFloats over_gate(gate), over_up(up), g(gate), u(up);
  backend_->SwiGlu({over_gate.data(), u.data(), over_gate.data(), 35});
  backend_->SwiGlu({g.data(), over_up.data(), over_up.data(), 35});
  EXPECT_TRUE(IsBitEqual(over_gate.values(), expected));
  EXPECT_TRUE(IsBitEqual(over_up.values(), expected));
}

TEST_P(ElementwiseTest, RopeTurnsNeighbouringPairsAndLeavesTheRestAlone) {
  for (const RopeShape& s : kRopeShapes) {
    const std::vector<float> x = RandomFloats(s.rows * s.heads * s.head_size, 9);
    std::vector<float> expected = x;
    for (size_t i = 0; i < x.size(); i += 2) {
      const size_t d = i % s.head_size;
      if (d >= s.rope_dims) continue;
      const double position = static_cast<double>((i / (s.head_size * s.heads) * 17 + 3) % 50);
      const double angle =
          position * std::pow(10000.0, -static_cast<double>(d) / static_cast<double>(s.rope_dims));
      expected[i] = static_cast<float>(x[i] * std::cos(angle) - x[i + 1] * std::sin(angle));
      expected[i + 1] = static_cast<float>(x[i] * std::sin(angle) + x[i + 1] * std::cos(angle));
    }
    EXPECT_TRUE(IsClose(RunRope(*backend_, s, x), expected, Tolerance{4 * 0x1p-24, 0}));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, ElementwiseTest, ::testing::ValuesIn(AllBackends()), ParamName);

class ElementwiseAcrossIsasTest : public ElementwiseTest {};

TEST_P(ElementwiseAcrossIsasTest, GivesTheBitsOfThePortableBackend) {
  const auto portable = MakeBackend("portable");
  for (const size_t n : kLengths) {
    const std::vector<float> x = RandomFloats(2 * n, 10, 50.0f), weight = RandomFloats(n, 11);
    EXPECT_TRUE(IsBitEqual(RunRmsNorm(*backend_, x, weight), RunRmsNorm(*portable, x, weight)));
    const std::vector<float> gate = RandomFloats(n, 12, 110.0f);
    EXPECT_TRUE(IsBitEqual(RunSwiGlu(*backend_, gate, weight), RunSwiGlu(*portable, gate, weight)));
  }
  for (const RopeShape& s : kRopeShapes) {
    const std::vector<float> x = RandomFloats(s.rows * s.heads * s.head_size, 13);
    EXPECT_TRUE(IsBitEqual(RunRope(*backend_, s, x), RunRope(*portable, s, x)));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, ElementwiseAcrossIsasTest, ::testing::ValuesIn(CpuBackends()), ParamName);

}  // namespace
}  // namespace millrace::kernels
