// Products with F16, BF16 and F32 weights on a device.
#include "kernels/cuda/matmul_float.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/reference/dequantize.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels::cuda {
namespace {

using millrace::testing::IsBitEqual;
using millrace::testing::IsClose;

const std::vector<WeightType> kFloatTypes = {WeightType::kF32, WeightType::kF16, WeightType::kBF16};

// Both sides of what every form of the kernels takes.
const std::vector<size_t> kRows = {1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 130};
constexpr size_t kMaxRows = 130;

// Columns of fewer than a load, of one step, of one chunk, and of more chunks than a block has warps.
struct Shape {
  size_t n, k;
};
const std::vector<Shape> kShapes = {{1, 1}, {17, 7}, {129, 32}, {16, 47}, {33, 512}, {5, 1100}, {3, 4100}};

enum class Place { kPacked, kAligned, kUnaligned };

// Weights as the device has them.
class DeviceWeights {
 public:
  DeviceWeights(const TestDevice& device, const WeightMatrix& weights, Place place)
      : bytes_(PackedBytesFloat(weights) + 16) {
    const size_t shift = place == Place::kUnaligned ? WeightBlockBytes(weights.type) : 0;
    matrix_ = weights;
    matrix_.data = bytes_.data() + shift;
    if (place == Place::kPacked) {
      matrix_ = PackFloat(device.queue(), weights, bytes_.data());
      return;
    }
    std::vector<uint8_t> all(bytes_.size(), 0xff);
    std::memcpy(all.data() + shift, weights.data, weights.rows * weights.row_bytes);
    bytes_.Upload(all.data());
  }
  const WeightMatrix& matrix() const { return matrix_; }
  bool Intact() const { return bytes_.Intact(); }

 private:
  DeviceBytes bytes_;
  WeightMatrix matrix_;
};

struct Case {
  std::vector<float> x;  // [at least rows, k]
  size_t rows = 0;
  WeightMatrix weights;
  MatMulStore store = MatMulStore::kReplace;
  std::vector<uint32_t> segment_ends;
  std::vector<float> out;  // to be added to
  size_t out_stride = 0;
};

// Of kPartials: [segments, rows, n].
std::vector<float> RunOn(const TestDevice& device, const Case& c) {
  const size_t k = c.weights.columns, n = c.weights.rows;
  const size_t stride = c.out_stride == 0 ? n : c.out_stride;
  const size_t parts = c.store == MatMulStore::kPartials ? c.segment_ends.size() : 1;
  const DeviceArray<float> x(
      std::vector<float>(c.x.begin(), c.x.begin() + static_cast<std::ptrdiff_t>(c.rows * k)));
  DeviceArray<float> out(parts * c.rows * stride);
  if (c.store == MatMulStore::kAdd) out.Set(c.out);
  const DeviceArray<float> scratch(MatMulFloatScratchFloats(c.rows, k));
  MatMulArgs args;
  args.x.x = x.data();
  args.x.rows = c.rows;
  args.x.columns = k;
  args.weights = c.weights;
  args.out = out.data();
  args.out_stride = c.out_stride;
  args.store = c.store;
  args.segment_ends = c.segment_ends;
  args.partial_stride = c.rows * stride;
  args.scratch = scratch.data();
  MatMulFloat(device.queue(), args);
  device.Wait();
  EXPECT_TRUE(x.Intact() && out.Intact() && scratch.Intact());
  return out.values();
}

float Rounded(WeightType type, float v) {
  if (type == WeightType::kF16) return __half2float(__float2half_rn(v));
  if (type == WeightType::kBF16) return __bfloat162float(__float2bfloat16_rn(v));
  return v;
}

// How a multiplier of tensor cores rounds while it adds is unspecified: a unit in the last place, that is
// twice what rounding to nearest costs, of each of the additions.
void ExpectClose(const std::vector<float>& actual, const Case& c, const WeightMatrix& w) {
  std::vector<float> expected(c.rows * w.rows);
  std::vector<double> bounds(expected.size());
  for (size_t r = 0; r < c.rows; ++r) {
    for (size_t n = 0; n < w.rows; ++n) {
      double sum = 0, magnitude = 0;
      for (size_t i = 0; i < w.columns; ++i) {
        const double product = static_cast<double>(Rounded(w.type, c.x[r * w.columns + i])) *
                               static_cast<double>(reference::WeightAt(w, n, i));
        sum += product;
        magnitude += std::fabs(product);
      }
      expected[r * w.rows + n] = static_cast<float>(sum);
      bounds[r * w.rows + n] = magnitude * static_cast<double>(w.columns + 8) * 0x1p-23 + 1e-30;
    }
  }
  EXPECT_TRUE(IsClose(actual, expected, bounds));
}

class CudaMatMulFloatTest : public ::testing::Test {
 protected:
  TestDevice device_;
};

TEST_F(CudaMatMulFloatTest, IsCloseToTheExactProductAndHasTheSameBitsForAllNumbersOfRows) {
  for (const WeightType type : kFloatTypes) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(::testing::Message() << static_cast<int>(type) << " n " << shape.n << " k " << shape.k);
      const OwnedWeights weights = RandomWeights(type, shape.n, shape.k, 1);
      const DeviceWeights packed(device_, weights.matrix, Place::kPacked);
      Case c;
      c.x = RandomFloats(kMaxRows * shape.k, 2);
      c.weights = packed.matrix();
      c.rows = kMaxRows;
      const std::vector<float> whole = RunOn(device_, c);
      ExpectClose(whole, c, weights.matrix);
      for (const size_t rows : kRows) {
        if (shape.k > 1000 && rows % 8 == 0) continue;
        c.rows = rows;
        EXPECT_TRUE(IsBitEqual(
            RunOn(device_, c),
            std::vector<float>(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(rows * shape.n))))
            << rows;
      }
      // The last row alone, where the batch had it in its last tile.
      c.rows = 1;
      c.x.erase(c.x.begin(), c.x.end() - static_cast<std::ptrdiff_t>(shape.k));
      EXPECT_TRUE(
          IsBitEqual(RunOn(device_, c),
                     std::vector<float>(whole.end() - static_cast<std::ptrdiff_t>(shape.n), whole.end())));
      EXPECT_TRUE(packed.Intact());
    }
  }
}

TEST_F(CudaMatMulFloatTest, ReadsWeightsThatAreNotPackedAtAnyAddressOfTheirType) {
  for (const WeightType type : kFloatTypes) {
    for (const Shape& shape : {Shape{19, 64}, {18, 77}}) {
      const OwnedWeights weights = RandomWeights(type, shape.n, shape.k, 3);
      Case c;
      c.x = RandomFloats(40 * shape.k, 4);
      for (const size_t rows : {5, 40}) {
        c.rows = rows;
        const DeviceWeights packed(device_, weights.matrix, Place::kPacked);
        c.weights = packed.matrix();
        const std::vector<float> expected = RunOn(device_, c);
        for (const Place place : {Place::kAligned, Place::kUnaligned}) {
          const DeviceWeights raw(device_, weights.matrix, place);
          c.weights = raw.matrix();
          EXPECT_TRUE(IsBitEqual(RunOn(device_, c), expected)) << static_cast<int>(type) << " rows " << rows;
        }
      }
    }
  }
}

TEST_F(CudaMatMulFloatTest, F32GivesTheBitsOfTheCpu) {
  const auto cpu = MakeBackend("portable");
  for (const Shape& shape : {Shape{1, 1}, {17, 47}, {3, 1100}}) {
    const OwnedWeights weights = RandomWeights(WeightType::kF32, shape.n, shape.k, 5);
    const DeviceWeights packed(device_, weights.matrix, Place::kPacked);
    for (const size_t rows : {1, 4, 9}) {
      MatMulCase on_cpu;
      on_cpu.weights = &weights;
      on_cpu.rows = rows;
      on_cpu.x = RandomFloats(rows * shape.k, 6, 10.0f);
      Case c;
      c.x = on_cpu.x;
      c.rows = rows;
      c.weights = packed.matrix();
      EXPECT_TRUE(IsBitEqual(RunOn(device_, c), RunMatMul(*cpu, on_cpu)));
    }
  }
}

// Columns [begin, end) of x.
std::vector<float> Slice(const std::vector<float>& x, size_t columns, size_t begin, size_t end) {
  std::vector<float> slice;
  for (size_t r = 0; r < x.size() / columns; ++r) {
    for (size_t i = begin; i < end; ++i) slice.push_back(x[r * columns + i]);
  }
  return slice;
}

TEST_F(CudaMatMulFloatTest, PartialsAreTheProductsOfTheSegmentsAndTheOtherStoresTheirSumsInOrder) {
  // Segments at multiples of a load, at none; of several chunks; more of them than a launch goes through.
  std::vector<uint32_t> many;
  for (uint32_t end = 3; end <= 3 * 35; end += 3) many.push_back(end);
  for (const std::vector<uint32_t>& ends :
       {std::vector<uint32_t>{64, 96, 192}, {5, 70, 71}, {600, 1208, 1300}, many}) {
    const size_t k = ends.back(), n = 21;
    for (const WeightType type : kFloatTypes) {
      const OwnedWeights weights = RandomWeights(type, n, k, 7);
      const DeviceWeights packed(device_, weights.matrix, Place::kPacked);
      for (const size_t rows : {3, 37}) {
        SCOPED_TRACE(::testing::Message() << static_cast<int>(type) << " k " << k << " rows " << rows);
        Case c;
        c.x = RandomFloats(rows * k, 8);
        c.rows = rows;
        c.weights = packed.matrix();
        c.segment_ends = ends;
        c.store = MatMulStore::kPartials;
        const std::vector<float> partials = RunOn(device_, c);
        const std::vector<float> before = RandomFloats(rows * n, 9);
        std::vector<float> added = before, replaced(rows * n);
        for (size_t s = 0; s < ends.size(); ++s) {
          const size_t begin = s == 0 ? 0 : ends[s - 1];
          Case alone;
          alone.x = Slice(c.x, k, begin, ends[s]);
          alone.rows = rows;
          WeightMatrix slice = weights.matrix;
          slice.data += begin * WeightBlockBytes(type);
          slice.columns = ends[s] - begin;
          const DeviceWeights columns(device_, slice, Place::kPacked);
          alone.weights = columns.matrix();
          const std::vector<float> partial(
              partials.begin() + static_cast<std::ptrdiff_t>(s * rows * n),
              partials.begin() + static_cast<std::ptrdiff_t>((s + 1) * rows * n));
          if (s < 3 || s + 1 == ends.size()) {
            EXPECT_TRUE(IsBitEqual(RunOn(device_, alone), partial)) << s;
          }
          for (size_t i = 0; i < partial.size(); ++i) {
            added[i] += partial[i];
            replaced[i] = s == 0 ? partial[i] : replaced[i] + partial[i];
          }
        }
        c.store = MatMulStore::kAdd;
        c.out = before;
        EXPECT_TRUE(IsBitEqual(RunOn(device_, c), added));
        c.store = MatMulStore::kReplace;
        EXPECT_TRUE(IsBitEqual(RunOn(device_, c), replaced));
      }
    }
  }
}

TEST_F(CudaMatMulFloatTest, AddsChunksOfASegmentInOrder) {
  for (const WeightType type : {WeightType::kF16, WeightType::kBF16}) {
    const OwnedWeights weights = RandomWeights(type, 17, 9 * kFloatChunk + 40, 10);
    const DeviceWeights packed(device_, weights.matrix, Place::kPacked);
    for (const size_t rows : {2, 33}) {
      Case c;
      c.x = RandomFloats(rows * weights.matrix.columns, 11);
      c.rows = rows;
      c.weights = packed.matrix();
      const std::vector<float> whole = RunOn(device_, c);
      for (uint32_t end = kFloatChunk; end < weights.matrix.columns; end += kFloatChunk)
        c.segment_ends.push_back(end);
      c.segment_ends.push_back(static_cast<uint32_t>(weights.matrix.columns));
      EXPECT_TRUE(IsBitEqual(RunOn(device_, c), whole));
    }
  }
}

TEST_F(CudaMatMulFloatTest, WritesRowsAtTheStrideAskedFor) {
  for (const WeightType type : kFloatTypes) {
    const OwnedWeights weights = RandomWeights(type, 5, 40, 12);
    const DeviceWeights packed(device_, weights.matrix, Place::kPacked);
    for (const size_t rows : {2, 34}) {
      Case c;
      c.x = RandomFloats(rows * 40, 13);
      c.rows = rows;
      c.weights = packed.matrix();
      const std::vector<float> dense = RunOn(device_, c);
      c.out_stride = 9;
      const std::vector<float> strided = RunOn(device_, c);
      for (size_t i = 0; i < strided.size(); ++i) {
        if (i % 9 < 5) {
          EXPECT_EQ(strided[i], dense[i / 9 * 5 + i % 9]) << i;
        } else {
          EXPECT_TRUE(std::isnan(strided[i])) << "wrote between rows: " << i;
        }
      }
    }
  }
}

TEST_F(CudaMatMulFloatTest, PassesNanAndWhatHalfCannotHoldOnInTheirRowsAlone) {
  for (const WeightType type : kFloatTypes) {
    const OwnedWeights weights = RandomWeights(type, 5, 33, 14);
    const DeviceWeights packed(device_, weights.matrix, Place::kPacked);
    for (const size_t rows : {3, 34}) {
      Case c;
      c.x = RandomFloats(rows * 33, 15);
      c.x[33 + 32] = std::numeric_limits<float>::quiet_NaN();
      c.x[2 * 33] = 70000.0f;
      c.rows = rows;
      c.weights = packed.matrix();
      const std::vector<float> out = RunOn(device_, c);
      for (size_t i = 0; i < out.size(); ++i) {
        EXPECT_EQ(std::isnan(out[i]), i / 5 == 1) << i;
        EXPECT_EQ(std::isinf(out[i]), i / 5 == 2 && type == WeightType::kF16) << i;
      }
    }
  }
}

TEST_F(CudaMatMulFloatTest, DoesNothingForNoRows) {
  const OwnedWeights weights = RandomWeights(WeightType::kF16, 5, 32, 16);
  const DeviceWeights packed(device_, weights.matrix, Place::kPacked);
  Case c;
  c.weights = packed.matrix();
  EXPECT_TRUE(RunOn(device_, c).empty());
}

}  // namespace
}  // namespace millrace::kernels::cuda
