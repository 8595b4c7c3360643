// The product of packed weights and activations rounded to 8 bits.
#include <cmath>

#include "kernels/matmul.h"
#include "kernels/reference/dequantize.h"
#include "tests/kernels/int8_product.h"
#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels {
namespace {

using millrace::testing::IsBitEqual;
using millrace::testing::IsClose;

constexpr size_t kMaxRows = 65;
const std::vector<WeightType> kPackedTypes = {WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kQ4_1,
                                              WeightType::kQ5_0, WeightType::kQ4_K, WeightType::kQ5_K,
                                              WeightType::kQ6_K};

struct Shape {
  WeightType type;
  size_t n, k;
};

std::string Name(const Shape& s, size_t rows) {
  return "type " + std::to_string(static_cast<int>(s.type)) + " n " + std::to_string(s.n) + " k " +
         std::to_string(s.k) + " rows " + std::to_string(rows);
}

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  for (const WeightType type : kPackedTypes) {
    if (WeightBlockElements(type) == 256) {
      for (const size_t n : {1, 16, 33}) shapes.push_back({type, n, 512});
      shapes.push_back({type, 15, 256});
      continue;
    }
    for (const size_t k : {32, 96, 288}) {
      for (const size_t n : {1, 15, 16, 17, 33, 193}) shapes.push_back({type, n, k});
    }
  }
  return shapes;
}

// What differs from a plain product of whole matrices.
struct Call {
  MatMulStore store = MatMulStore::kReplace;
  std::vector<uint32_t> segment_ends;
  size_t out_stride = 0;
  std::vector<float> out;  // what is there before; empty: NaN
  InputRounding rounding = InputRounding::kPlain;
};

class Product {
 public:
  Product(const Backend& backend, const WeightMatrix& weights)
      : backend_(backend),
        packed_(backend.PackedBytes(weights) / sizeof(float), GuardedFloats::Alignment::kCacheLine) {
    weights_ = backend.Pack(weights, reinterpret_cast<uint8_t*>(packed_.data()));
    EXPECT_TRUE(packed_.Intact()) << "packed outside of its buffer";
  }

  // The first `rows` rows of `x` times the weights, on guarded, poisoned buffers.
  std::vector<float> Run(const std::vector<float>& x, size_t rows, const Call& call = {}) {
    const size_t k = weights_.columns;
    GuardedFloats in(std::vector<float>(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(rows * k)));
    GuardedFloats buffer(backend_.MatMulInputBytes(rows, k) / sizeof(float),
                         GuardedFloats::Alignment::kCacheLine);
    GuardedFloats scratch(backend_.MatMulScratchFloats(rows, k), GuardedFloats::Alignment::kCacheLine);
    const size_t stride = call.out_stride == 0 ? weights_.rows : call.out_stride;
    const size_t outs = call.store == MatMulStore::kPartials ? call.segment_ends.size() : 1;
    GuardedFloats out = call.out.empty() ? GuardedFloats(outs * rows * stride) : GuardedFloats(call.out);
    MatMulArgs args;
    args.x =
        backend_.PrepareInput({in.data(), rows, k, reinterpret_cast<uint8_t*>(buffer.data()), call.rounding});
    args.weights = weights_;
    args.out = out.data();
    args.out_stride = call.out_stride;
    args.store = call.store;
    args.segment_ends = call.segment_ends;
    args.partial_stride = rows * stride;
    args.scratch = scratch.data();
    backend_.MatMul(args);
    EXPECT_TRUE(in.Intact() && buffer.Intact() && scratch.Intact() && out.Intact())
        << "wrote outside of its buffers";
    return out.values();
  }

 private:
  const Backend& backend_;
  GuardedFloats packed_;
  WeightMatrix weights_;
};

std::vector<float> First(const std::vector<float>& values, size_t count) {
  return std::vector<float>(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(count));
}

class MatMulInt8Test : public ::testing::TestWithParam<std::string> {};

TEST_P(MatMulInt8Test, IsTheProductOfTheQuantsForAllShapes) {
  const auto backend = MakeInt8Backend(GetParam());
  for (const Shape& shape : Shapes()) {
    const OwnedWeights weights = RandomWeights(shape.type, shape.n, shape.k, 1);
    const std::vector<float> x = RandomFloats(kMaxRows * shape.k, 2);
    const Expected expected = Multiply(x, kMaxRows, weights.matrix);
    Product product(*backend, weights.matrix);
    for (const size_t rows : kRowCounts) {
      const size_t count = rows * shape.n;
      const std::vector<double> bounds(expected.bounds.begin(),
                                       expected.bounds.begin() + static_cast<std::ptrdiff_t>(count));
      ASSERT_TRUE(IsClose(product.Run(x, rows), First(expected.out, count), bounds)) << Name(shape, rows);
    }
  }
}

// An activation is off by at most half of its block's scale.
TEST_P(MatMulInt8Test, IsAsFarFromTheExactProductAsRoundingActivationsMakesIt) {
  constexpr size_t kRows = 3, kN = 17;
  const auto backend = MakeInt8Backend(GetParam());
  for (const WeightType type : kPackedTypes) {
    const size_t kColumns = WeightBlockElements(type) == 256 ? 512 : 288;
    const OwnedWeights weights = RandomWeights(type, kN, kColumns, 3);
    const std::vector<float> x = RandomFloats(kRows * kColumns, 4);
    std::vector<float> exact;
    std::vector<double> bounds;
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t n = 0; n < kN; ++n) {
        double sum = 0, bound = 0;
        for (size_t i = 0; i < kColumns; ++i) {
          const double w = reference::WeightAt(weights.matrix, n, i);
          float max = 0;
          for (size_t j = 0; j < 32; ++j) max = std::fmax(max, std::fabs(x[r * kColumns + i / 32 * 32 + j]));
          sum += static_cast<double>(x[r * kColumns + i]) * w;
          bound += std::fabs(w) * static_cast<double>(max) * (0.5 / 127 + 1e-5);
        }
        exact.push_back(static_cast<float>(sum));
        bounds.push_back(bound);
      }
    }
    EXPECT_TRUE(IsClose(Product(*backend, weights.matrix).Run(x, kRows), exact, bounds));
  }
}

TEST_P(MatMulInt8Test, TakesTheLargestQuants) {
  constexpr size_t kN = 16;
  const auto backend = MakeInt8Backend(GetParam());
  for (const WeightType type : kPackedTypes) {
    const size_t kColumns = AtLeastABlock(type, 64);
    for (const uint8_t quants : {0x80, 0x7F, 0x00, 0xFF}) {
      OwnedWeights weights = RandomWeights(type, kN, kColumns, 5);
      uint8_t* bytes = weights.bytes.data() + (weights.matrix.data - weights.bytes.data());
      const size_t block_bytes = WeightBlockBytes(type);
      const size_t header = type == WeightType::kQ6_K ? 0 : HasMinimum(type) ? 4 : 2;
      const size_t end = block_bytes - (type == WeightType::kQ6_K ? 2 : 0);
      for (size_t b = 0; b < kN * kColumns / WeightBlockElements(type); ++b) {
        std::memset(bytes + b * block_bytes + header, quants, end - header);
      }
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<float> x(5 * kColumns, sign);
        const Expected expected = Multiply(x, 5, weights.matrix);
        EXPECT_TRUE(IsClose(Product(*backend, weights.matrix).Run(x, 5), expected.out, expected.bounds));
      }
    }
  }
}

// The largest integer that a dot product of kQ6_K can be: it still fits a float, as the layout says.
TEST_P(MatMulInt8Test, MultipliesDotsOfHalfBlocksByTheirScalesExactly) {
  const auto backend = MakeInt8Backend(GetParam());
  OwnedWeights weights = RandomWeights(WeightType::kQ6_K, 16, 256, 5);
  for (size_t n = 0; n < 16; ++n) {
    uint8_t* block = weights.bytes.data() + (weights.matrix.data - weights.bytes.data()) + n * 210;
    std::memset(block, 0, 192);            // quants -32
    std::memset(block + 192, 0x80, 16);    // scales -128
    block[208] = 0x00, block[209] = 0x3C;  // d = 1
  }
  std::vector<float> x(5 * 256, 127.0f);
  EXPECT_TRUE(IsBitEqual(Product(*backend, weights.matrix).Run(x, 5),
                         std::vector<float>(5 * 16, 8 * 2 * 16 * 127.0f * 32 * 128)));
  for (size_t i = 0; i < x.size(); i += 32) x[i] = 126;
  EXPECT_TRUE(IsBitEqual(Product(*backend, weights.matrix).Run(x, 5),
                         std::vector<float>(5 * 16, 8 * (2 * 16 * 127.0f - 1) * 32 * 128)));
}

TEST_P(MatMulInt8Test, GivesARowTheSameBitsInEveryBatchOnAnyNumberOfThreadsAndInstructionSet) {
  const auto backend = MakeInt8Backend(GetParam());
  const auto team = MakeInt8Backend(GetParam(), 3);
  const auto portable = MakeInt8Backend("portable");
  for (const Shape& shape : Shapes()) {
    const OwnedWeights weights = RandomWeights(shape.type, shape.n, shape.k, 6);
    const std::vector<float> x = RandomFloats(kMaxRows * shape.k, 7, 100.0f);
    const std::vector<float> whole = Product(*portable, weights.matrix).Run(x, kMaxRows);
    Product product(*backend, weights.matrix);
    Product shared(*team, weights.matrix);
    for (const size_t rows : kRowCounts) {
      const std::vector<float> first = First(whole, rows * shape.n);
      ASSERT_TRUE(IsBitEqual(product.Run(x, rows), first)) << Name(shape, rows);
      ASSERT_TRUE(IsBitEqual(shared.Run(x, rows), first)) << Name(shape, rows);
    }
    for (size_t r = 0; r < 9; ++r) {
      const auto row = x.begin() + static_cast<std::ptrdiff_t>(r * shape.k);
      const std::vector<float> alone(row, row + static_cast<std::ptrdiff_t>(shape.k));
      const auto out = whole.begin() + static_cast<std::ptrdiff_t>(r * shape.n);
      const std::vector<float> expected(out, out + static_cast<std::ptrdiff_t>(shape.n));
      ASSERT_TRUE(IsBitEqual(product.Run(alone, 1), expected)) << Name(shape, r);
    }
  }
}

const Call kRefined{MatMulStore::kReplace, {}, 0, {}, InputRounding::kRefineLargest};

// Rows of which every third has large blocks, each in places of its own.
std::vector<float> RowsWithLargeBlocks(size_t rows, size_t columns) {
  std::vector<float> x = RandomFloats(rows * columns, 21);
  const size_t blocks = columns / 32;
  for (size_t r = 0; r < rows; r += 3) {
    for (const size_t b : {r % blocks, (r + 5) % blocks}) {
      for (size_t i = 0; i < 32; ++i) x[r * columns + b * 32 + i] *= i == r % 32 ? 1000.0f : 7.0f;
    }
  }
  return x;
}

// What is left of the large blocks is rounded to 8 bits again; all others are off by half of their scale.
TEST_P(MatMulInt8Test, RefinesLargeBlocks) {
  constexpr size_t kRows = 7, kN = 17, kColumns = 768, kBlocks = kColumns / 32;
  const auto backend = MakeInt8Backend(GetParam());
  const std::vector<float> x = RowsWithLargeBlocks(kRows, kColumns);
  for (const WeightType type : kPackedTypes) {
    const OwnedWeights weights = RandomWeights(type, kN, kColumns, 22);
    std::vector<float> exact;
    std::vector<double> bounds;
    for (size_t r = 0; r < kRows; ++r) {
      double max[kBlocks] = {}, squares = 0;
      for (size_t i = 0; i < kColumns; ++i) {
        max[i / 32] = std::max<double>(max[i / 32], std::fabs(x[r * kColumns + i]));
      }
      for (const double m : max) squares += m * m;
      for (size_t n = 0; n < kN; ++n) {
        double sum = 0, bound = 0;
        for (size_t i = 0; i < kColumns; ++i) {
          const double w = reference::WeightAt(weights.matrix, n, i), m = max[i / 32];
          const double left = m * m > 4 * squares / kBlocks ? 0.5 / 127 : 1.0;
          sum += static_cast<double>(x[r * kColumns + i]) * w;
          bound += std::fabs(w) * m * (left * 0.5 / 127 + 1e-5);
        }
        exact.push_back(static_cast<float>(sum));
        bounds.push_back(bound);
      }
    }
    Product product(*backend, weights.matrix);
    EXPECT_TRUE(IsClose(product.Run(x, kRows, kRefined), exact, bounds));
    EXPECT_FALSE(IsClose(product.Run(x, kRows), exact, bounds)) << "the plain rounding is as good";
  }
}

TEST_P(MatMulInt8Test, GivesARefinedRowTheSameBitsInEveryBatchOnAnyNumberOfThreadsAndInstructionSet) {
  constexpr size_t kN = 33, kColumns = 512;
  const std::vector<float> x = RowsWithLargeBlocks(kMaxRows, kColumns);
  for (const WeightType type : kPackedTypes) {
    const OwnedWeights weights = RandomWeights(type, kN, kColumns, 23);
    const auto portable = MakeInt8Backend("portable"), backend = MakeInt8Backend(GetParam());
    const std::vector<float> whole = Product(*portable, weights.matrix).Run(x, kMaxRows, kRefined);
    Product product(*backend, weights.matrix);
    for (const size_t rows : kRowCounts) {
      ASSERT_TRUE(IsBitEqual(product.Run(x, rows, kRefined), First(whole, rows * kN))) << rows;
    }
    const auto team = MakeInt8Backend(GetParam(), 3);
    EXPECT_TRUE(IsBitEqual(Product(*team, weights.matrix).Run(x, kMaxRows, kRefined), whole));
    const std::vector<float> plain = product.Run(x, kMaxRows);
    for (size_t r = 0; r < 9; ++r) {
      const auto row = x.begin() + static_cast<std::ptrdiff_t>(r * kColumns);
      const std::vector<float> alone(row, row + kColumns);
      const auto at = [&](const std::vector<float>& all) {
        const auto begin = all.begin() + static_cast<std::ptrdiff_t>(r * kN);
        return std::vector<float>(begin, begin + kN);
      };
      EXPECT_TRUE(IsBitEqual(product.Run(alone, 1, kRefined), at(whole))) << r;
      // A row without large blocks is not changed by those of its neighbours.
      if (r % 3 != 0) {
        EXPECT_TRUE(IsBitEqual(at(plain), at(whole))) << r;
      }
    }
  }
}

TEST_P(MatMulInt8Test, AddsSegmentsInOrderWhicheverWayTheyAreStored) {
  const auto backend = MakeInt8Backend(GetParam());
  constexpr size_t kN = 35;
  for (const WeightType type : kPackedTypes) {
    const bool super = WeightBlockElements(type) == 256;
    const std::vector<uint32_t> ends =
        super ? std::vector<uint32_t>{256, 512, 1280} : std::vector<uint32_t>{32, 160, 288};
    const size_t kColumns = ends.back();
    const OwnedWeights weights = RandomWeights(type, kN, kColumns, 8);
    Product product(*backend, weights.matrix);
    for (const size_t rows : {1, 4, 7}) {
      const size_t count = rows * kN;
      const std::vector<float> x = RandomFloats(rows * kColumns, 9);
      const std::vector<float> before = RandomFloats(count, 10, 10.0f);
      const std::vector<float> partials = product.Run(x, rows, {MatMulStore::kPartials, ends, 0, {}});
      std::vector<float> replaced(count), added = before;
      for (size_t i = 0; i < count; ++i) {
        for (size_t s = 0; s < ends.size(); ++s) {
          replaced[i] = s == 0 ? partials[i] : replaced[i] + partials[s * count + i];
          added[i] += partials[s * count + i];
        }
      }
      EXPECT_TRUE(IsBitEqual(product.Run(x, rows, {MatMulStore::kReplace, ends, 0, {}}), replaced));
      EXPECT_TRUE(IsBitEqual(product.Run(x, rows, {MatMulStore::kAdd, ends, 0, before}), added));
      GuardedFloats out(before);
      const float* sums[] = {partials.data(), partials.data() + count, partials.data() + 2 * count};
      backend->AddPartials({sums, out.data(), rows, kN, 0, kN});
      EXPECT_TRUE(IsBitEqual(out.values(), added));
    }
  }
}

TEST_P(MatMulInt8Test, MultipliesEachSegmentAsAMatrixOfItsOwn) {
  const auto backend = MakeInt8Backend(GetParam());
  constexpr size_t kRows = 5, kN = 18;
  for (const WeightType type : {WeightType::kQ4_1, WeightType::kQ5_K}) {
    const uint32_t block = static_cast<uint32_t>(WeightBlockElements(type));
    const uint32_t kColumns = 5 * block, kCut = 3 * block;
    const OwnedWeights weights = RandomWeights(type, kN, kColumns, 11);
    const std::vector<float> x = RandomFloats(kRows * kColumns, 12);
    std::vector<float> expected;
    for (const auto& [begin, end] : {std::pair<size_t, size_t>{0, kCut}, {kCut, kColumns}}) {
      // A slice of the columns, its rows as far apart as those of the whole.
      WeightMatrix slice = weights.matrix;
      slice.data += begin / block * WeightBlockBytes(slice.type);
      slice.columns = end - begin;
      std::vector<float> columns;
      for (size_t r = 0; r < kRows; ++r) {
        const auto row = x.begin() + static_cast<std::ptrdiff_t>(r * kColumns);
        columns.insert(columns.end(), row + static_cast<std::ptrdiff_t>(begin),
                       row + static_cast<std::ptrdiff_t>(end));
      }
      const std::vector<float> part = Product(*backend, slice).Run(columns, kRows);
      expected.insert(expected.end(), part.begin(), part.end());
    }
    Product product(*backend, weights.matrix);
    EXPECT_TRUE(
        IsBitEqual(product.Run(x, kRows, {MatMulStore::kPartials, {kCut, kColumns}, 0, {}}), expected));
  }
}

TEST_P(MatMulInt8Test, LeavesWhatIsBetweenTheRowsOfTheOutputAlone) {
  const auto backend = MakeInt8Backend(GetParam());
  constexpr size_t kN = 19, kStride = 24, kColumns = 64;
  const OwnedWeights weights = RandomWeights(WeightType::kQ8_0, kN, kColumns, 13);
  Product product(*backend, weights.matrix);
  for (const size_t rows : {1, 6}) {
    const std::vector<float> x = RandomFloats(rows * kColumns, 14);
    const std::vector<float> dense = product.Run(x, rows);
    std::vector<float> expected(rows * kStride, 7.0f);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t n = 0; n < kN; ++n) expected[r * kStride + n] = dense[r * kN + n];
    }
    const std::vector<float> before(rows * kStride, 7.0f);
    EXPECT_TRUE(IsBitEqual(product.Run(x, rows, {MatMulStore::kReplace, {}, kStride, before}), expected));
  }
}

TEST_P(MatMulInt8Test, MakesARowWithNanOrInfinityNanAndNoOther) {
  const auto backend = MakeInt8Backend(GetParam());
  const OwnedWeights weights = RandomWeights(WeightType::kQ8_0, 5, 64, 15);
  Product product(*backend, weights.matrix);
  for (const float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const size_t rows : {2, 8}) {
      std::vector<float> x = RandomFloats(rows * 64, 16);
      x[64 + 17] = odd;
      for (const Call& call : {Call(), kRefined}) {
        const std::vector<float> out = product.Run(x, rows, call);
        for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 5 == 1) << i;
      }
    }
  }
}

TEST_P(MatMulInt8Test, DoesNothingForNoRows) {
  const auto backend = MakeInt8Backend(GetParam());
  const OwnedWeights weights = RandomWeights(WeightType::kQ4_0, 5, 32, 17);
  EXPECT_TRUE(Product(*backend, weights.matrix).Run({}, 0).empty());
}

TEST_P(MatMulInt8Test, MultipliesWhatIsNotPackedAsTheFloatPathDoes) {
  const auto backend = MakeInt8Backend(GetParam());
  const auto f32 = MakeBackend(GetParam());
  for (const WeightType type : {WeightType::kF32, WeightType::kF16, WeightType::kBF16, WeightType::kQ8_0}) {
    const OwnedWeights weights = RandomWeights(type, 9, 64, 18);
    EXPECT_EQ(backend->PackedBytes(weights.matrix) == 0, type != WeightType::kQ8_0);
    MatMulCase c;
    c.weights = &weights;
    c.rows = 3;
    c.x = RandomFloats(3 * 64, 19);
    EXPECT_TRUE(IsBitEqual(RunMatMul(*backend, c), RunMatMul(*f32, c)));
  }
}

TEST_P(MatMulInt8Test, PacksIntoAboutAsManyBytesAsTheFileHas) {
  const auto backend = MakeInt8Backend(GetParam());
  for (const WeightType type : kPackedTypes) {
    const size_t columns = AtLeastABlock(type, 96);
    const OwnedWeights weights = RandomWeights(type, 32, columns, 20);
    EXPECT_EQ(MakeBackend(GetParam())->PackedBytes(weights.matrix), 0u);
    const size_t packed = backend->PackedBytes(weights.matrix);
    if (type == WeightType::kQ4_K || type == WeightType::kQ5_K) {
      // Scales of six bits take a byte.
      EXPECT_EQ(packed, 2 * (16 * WeightBlockBytes(type) + 8 * 8));
    } else {
      EXPECT_EQ(packed, 32 * weights.matrix.row_bytes);
    }
    const OwnedWeights more = RandomWeights(type, 33, columns, 20);
    EXPECT_EQ(backend->PackedBytes(more.matrix), packed / 2 * 3);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, MatMulInt8Test, ::testing::ValuesIn(CpuBackends()), ParamName);

}  // namespace
}  // namespace millrace::kernels
