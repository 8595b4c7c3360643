// Activations rounded to 8 bits, as PrepareInput leaves them (kernels/cpu/packed_layout.h).
#include <cmath>
#include <limits>

#include "kernels/cpu/packed_layout.h"
#include "tests/kernels/kernel_testing.h"

namespace millrace::kernels {
namespace {

using cpu::InputBlock;

// One block of one row, written out plainly.
struct PlainBlock {
  int quants[kActivationBlock] = {};
  float scale = 0;
  int sum = 0;
  int first_sum = 0;  // of the first half
};

PlainBlock QuantizePlainly(const float* x) {
  PlainBlock block;
  float max = 0;
  for (size_t i = 0; i < kActivationBlock; ++i) {
    if (!std::isfinite(x[i])) {
      block.scale = std::numeric_limits<float>::quiet_NaN();
      return block;
    }
    max = std::fmax(max, std::fabs(x[i]));
  }
  if (max < 0x1p-100f) return block;
  block.scale = max / 127.0f;
  const float inverse = 127.0f / max;
  for (size_t i = 0; i < kActivationBlock; ++i) {
    const float scaled = x[i] * inverse;
    block.quants[i] = static_cast<int>(std::nearbyint(scaled));
    block.sum += block.quants[i];
    if (i < kActivationBlock / 2) block.first_sum += block.quants[i];
  }
  return block;
}

bool SameFloat(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::memcmp(&a, &b, sizeof(a)) == 0;
}

class QuantizeTest : public ::testing::TestWithParam<std::string> {
 protected:
  // Quantises `values` as rows of `columns` and compares every block with the plain result.
  void ExpectPlainResults(const std::vector<float>& values, size_t rows, size_t columns) {
    const auto backend = MakeInt8Backend(GetParam());
    GuardedFloats x(values);
    GuardedFloats buffer(backend->MatMulInputBytes(rows, columns) / sizeof(float),
                         GuardedFloats::Alignment::kCacheLine);
    const MatMulInput input =
        backend->PrepareInput({x.data(), rows, columns, reinterpret_cast<uint8_t*>(buffer.data())});
    EXPECT_TRUE(x.Intact() && buffer.Intact()) << "wrote outside of its buffer";
    ASSERT_NE(input.quantized, nullptr);
    EXPECT_EQ(input.x, x.data());
    const auto* blocks = static_cast<const InputBlock*>(input.quantized);
    const size_t per_row = columns / kActivationBlock;
    for (size_t r = 0; r < rows; ++r) {
      for (size_t b = 0; b < per_row; ++b) {
        const PlainBlock plain = QuantizePlainly(x.data() + r * columns + b * kActivationBlock);
        const InputBlock& block = blocks[r / cpu::kInputRows * per_row + b];
        const size_t lane = r % cpu::kInputRows;
        const float scaled_sum = plain.scale * static_cast<float>(plain.sum);
        ASSERT_TRUE(SameFloat(block.scale[lane], plain.scale)) << "row " << r << " block " << b;
        ASSERT_TRUE(SameFloat(block.scaled_sum[lane], scaled_sum)) << "row " << r << " block " << b;
        ASSERT_EQ(block.minus_sum[lane], -plain.sum) << "row " << r << " block " << b;
        ASSERT_EQ(block.minus_first_sum[lane], -plain.first_sum) << "row " << r << " block " << b;
        for (size_t i = 0; i < kActivationBlock; ++i) {
          ASSERT_EQ(block.quants[lane][i], plain.quants[i]) << "row " << r << " block " << b << " " << i;
        }
      }
    }
  }
};

TEST_P(QuantizeTest, GivesThePlainBitsForAllRowCounts) {
  for (const size_t columns : {32, 96, 576}) {
    for (const size_t rows : {1, 2, 3, 4, 5, 9}) {
      ExpectPlainResults(RandomFloats(rows * columns, 1, 3.0f), rows, columns);
    }
  }
}

TEST_P(QuantizeTest, GivesThePlainBitsAtAllMagnitudes) {
  std::vector<float> values;
  for (int exponent = -149; exponent < 128; ++exponent) {
    for (const float v : RandomFloats(kActivationBlock, static_cast<uint32_t>(exponent + 200))) {
      values.push_back(std::ldexp(v, exponent));
    }
  }
  ExpectPlainResults(values, values.size() / kActivationBlock, kActivationBlock);
}

TEST_P(QuantizeTest, RoundsHalvesToEven) {
  std::vector<float> values(kActivationBlock);
  values[0] = 127;
  for (size_t i = 1; i < values.size(); ++i) values[i] = static_cast<float>(i) * (i % 2 == 0 ? 0.5f : -0.5f);
  ExpectPlainResults(values, 1, kActivationBlock);
}

TEST_P(QuantizeTest, MarksBlocksThatAreNotFiniteAndTakesZerosForZeros) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float odd : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
                          kInfinity, -kInfinity, std::numeric_limits<float>::max(), 0.0f, -0.0f}) {
    for (const size_t at : {0, 13, 31}) {
      std::vector<float> values(3 * kActivationBlock);
      values[kActivationBlock + at] = odd;
      values[2 * kActivationBlock] = 1;
      ExpectPlainResults(values, 1, 3 * kActivationBlock);
    }
  }
}

TEST_P(QuantizeTest, GivesTheSameBitsOnSeveralThreads) {
  constexpr size_t kRows = 67, kColumns = 2048;
  const std::vector<float> x = RandomFloats(kRows * kColumns, 2);
  std::vector<GuardedFloats> buffers;
  for (const size_t threads : {1, 3}) {
    const auto backend = MakeInt8Backend(GetParam(), threads);
    buffers.emplace_back(backend->MatMulInputBytes(kRows, kColumns) / sizeof(float),
                         GuardedFloats::Alignment::kCacheLine);
    backend->PrepareInput({x.data(), kRows, kColumns, reinterpret_cast<uint8_t*>(buffers.back().data())});
  }
  const size_t bytes = MakeInt8Backend(GetParam())->MatMulInputBytes(kRows, kColumns);
  EXPECT_EQ(std::memcmp(buffers[0].data(), buffers[1].data(), bytes), 0);
}

TEST_P(QuantizeTest, LeavesRowsThatAreNotWholeBlocksAlone) {
  const auto backend = MakeInt8Backend(GetParam());
  EXPECT_EQ(backend->MatMulInputBytes(4, 33), 0u);
  const std::vector<float> x(33, 1.0f);
  EXPECT_EQ(backend->PrepareInput({x.data(), 1, 33, nullptr}).quantized, nullptr);
}

INSTANTIATE_TEST_SUITE_P(Backends, QuantizeTest, ::testing::ValuesIn(CpuBackends()), ParamName);

}  // namespace
}  // namespace millrace::kernels
