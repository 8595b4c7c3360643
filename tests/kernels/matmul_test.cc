#include "kernels/matmul.h"

#include <cmath>

#include "kernels/reference/dequantize.h"
#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels {
namespace {

using millrace::testing::IsBitEqual;
using millrace::testing::IsClose;

constexpr size_t kMaxRows = 65;

struct Expected {
  std::vector<float> out;
  std::vector<double> magnitude;  // sum of |x * w|, what rounding errors are relative to
};

Expected Multiply(const std::vector<float>& x, size_t rows, const WeightMatrix& weights) {
  const size_t n = weights.rows, k = weights.columns;
  std::vector<double> w(n * k);
  for (size_t c = 0; c < n; ++c) {
    for (size_t i = 0; i < k; ++i) w[c * k + i] = reference::WeightAt(weights, c, i);
  }
  Expected expected{std::vector<float>(rows * n), std::vector<double>(rows * n)};
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < n; ++c) {
      double sum = 0, magnitude = 0;
      for (size_t i = 0; i < k; ++i) {
        const double product = static_cast<double>(x[r * k + i]) * w[c * k + i];
        sum += product;
        magnitude += std::fabs(product);
      }
      expected.out[r * n + c] = static_cast<float>(sum);
      expected.magnitude[r * n + c] = magnitude;
    }
  }
  return expected;
}

// A sum of `terms` float terms is off by at most terms * 2^-24 of the sum of their magnitudes (Higham,
// chapter 4).
std::vector<double> Bounds(const Expected& expected, size_t count, size_t terms) {
  std::vector<double> bounds(count);
  for (size_t i = 0; i < count; ++i) {
    bounds[i] = expected.magnitude[i] * static_cast<double>(terms) * 0x1p-24 + 1e-30;
  }
  return bounds;
}

std::vector<size_t> Columns(WeightType type) {
  if (WeightBlockElements(type) == 1) return {1, 5, 32, 47, 96};
  if (WeightBlockElements(type) == 256) return {256, 512};
  return {32, 96, 160};
}

struct Shape {
  WeightType type;
  size_t n, k;
};

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  for (const WeightType type : kWeightTypes) {
    for (const size_t k : Columns(type)) {
      for (const size_t n : {1, 3, 17, 193}) {
        if (k < 256 || n < 64) shapes.push_back({type, n, k});
      }
    }
  }
  return shapes;
}

std::vector<float> First(const std::vector<float>& values, size_t count) {
  return std::vector<float>(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(count));
}

class MatMulTest : public ::testing::TestWithParam<std::string> {};

TEST_P(MatMulTest, IsCloseToTheExactProductForAllShapes) {
  const auto backend = MakeBackend(GetParam());
  for (const Shape& shape : Shapes()) {
    const OwnedWeights weights = RandomWeights(shape.type, shape.n, shape.k, 1);
    MatMulCase c;
    c.weights = &weights;
    c.x = RandomFloats(kMaxRows * shape.k, 2);
    const Expected expected = Multiply(c.x, kMaxRows, weights.matrix);
    const size_t terms = GetParam() == "reference" ? shape.k + 1 : shape.k / 16 + 6;
    for (const size_t rows : kRowCounts) {
      c.rows = rows;
      const size_t count = rows * shape.n;
      ASSERT_TRUE(IsClose(RunMatMul(*backend, c), First(expected.out, count), Bounds(expected, count, terms)))
          << "type " << static_cast<int>(shape.type) << " n " << shape.n << " k " << shape.k << " rows "
          << rows;
    }
  }
}

TEST_P(MatMulTest, AddsToTheOutputWhenAsked) {
  const auto backend = MakeBackend(GetParam());
  const OwnedWeights weights = RandomWeights(WeightType::kQ4_1, 19, 64, 3);
  for (const size_t rows : {1, 9}) {
    MatMulCase c;
    c.weights = &weights;
    c.rows = rows;
    c.x = RandomFloats(rows * 64, 4);
    std::vector<float> sum = RunMatMul(*backend, c);
    c.out = RandomFloats(rows * 19, 5, 10.0f);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = c.out[i] + sum[i];
    EXPECT_TRUE(IsBitEqual(RunMatMul(*backend, c), sum));
  }
}

TEST_P(MatMulTest, PassesInfinityAndNanOn) {
  const auto backend = MakeBackend(GetParam());
  const OwnedWeights weights = RandomWeights(WeightType::kQ8_0, 5, 32, 6);
  for (const size_t rows : {1, 8}) {
    MatMulCase c;
    c.weights = &weights;
    c.rows = rows;
    c.x = RandomFloats(rows * 32, 7);
    c.x[17] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> out = RunMatMul(*backend, c);
    for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i < 5) << i;
  }
}

TEST_P(MatMulTest, DoesNothingForNoRows) {
  const OwnedWeights weights = RandomWeights(WeightType::kQ4_0, 5, 32, 6);
  MatMulCase c;
  c.weights = &weights;
  EXPECT_TRUE(RunMatMul(*MakeBackend(GetParam()), c).empty());
}

TEST_P(MatMulTest, GivesARowTheSameBitsInEveryBatch) {
  const auto backend = MakeBackend(GetParam());
  for (const Shape& shape : Shapes()) {
    const OwnedWeights weights = RandomWeights(shape.type, shape.n, shape.k, 8);
    MatMulCase c;
    c.weights = &weights;
    c.x = RandomFloats(kMaxRows * shape.k, 9);
    c.rows = kMaxRows;
    const std::vector<float> whole = RunMatMul(*backend, c);
    for (const size_t rows : kRowCounts) {
      c.rows = rows;
      ASSERT_TRUE(IsBitEqual(RunMatMul(*backend, c), First(whole, rows * shape.n)))
          << "type " << static_cast<int>(shape.type) << " n " << shape.n << " k " << shape.k << " rows "
          << rows;
    }
  }
}

TEST_P(MatMulTest, GivesEveryRowAloneTheBitsItHasInTheBatch) {
  const auto backend = MakeBackend(GetParam());
  for (const WeightType type : kWeightTypes) {
    const size_t k = AtLeastABlock(type, 96);
    const OwnedWeights weights = RandomWeights(type, 17, k, 10);
    MatMulCase c;
    c.weights = &weights;
    c.x = RandomFloats(kMaxRows * k, 11);
    c.rows = kMaxRows;
    const std::vector<float> whole = RunMatMul(*backend, c);
    for (size_t r = 0; r < kMaxRows; ++r) {
      MatMulCase alone;
      alone.weights = &weights;
      alone.rows = 1;
      alone.x.assign(c.x.begin() + static_cast<std::ptrdiff_t>(r * k),
                     c.x.begin() + static_cast<std::ptrdiff_t>((r + 1) * k));
      const std::vector<float> row(whole.begin() + static_cast<std::ptrdiff_t>(r * 17),
                                   whole.begin() + static_cast<std::ptrdiff_t>((r + 1) * 17));
      ASSERT_TRUE(IsBitEqual(RunMatMul(*backend, alone), row)) << "row " << r;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, MatMulTest, ::testing::ValuesIn(AllBackends()), ParamName);

class MatMulAcrossIsasTest : public ::testing::TestWithParam<std::string> {};

TEST_P(MatMulAcrossIsasTest, GivesTheBitsOfThePortableBackend) {
  const auto backend = MakeBackend(GetParam());
  const auto portable = MakeBackend("portable");
  for (const Shape& shape : Shapes()) {
    const OwnedWeights weights = RandomWeights(shape.type, shape.n, shape.k, 12);
    MatMulCase c;
    c.weights = &weights;
    c.x = RandomFloats(17 * shape.k, 13, 100.0f);
    for (const size_t rows : {1, 2, 3, 4, 17}) {
      c.rows = rows;
      ASSERT_TRUE(IsBitEqual(RunMatMul(*backend, c), RunMatMul(*portable, c)))
          << "type " << static_cast<int>(shape.type) << " n " << shape.n << " k " << shape.k << " rows "
          << rows;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, MatMulAcrossIsasTest, ::testing::ValuesIn(CpuBackends()), ParamName);

}  // namespace
}  // namespace millrace::kernels
