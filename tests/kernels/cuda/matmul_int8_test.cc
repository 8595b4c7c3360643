// Products of quantised weights on the device have the bits of the CPU backend's.
#include "kernels/cuda/matmul_int8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/kernels/kernel_testing.h"

namespace millrace::kernels::cuda {
namespace {

const std::vector<WeightType> kTypes = {WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kQ4_1,
                                        WeightType::kQ5_0, WeightType::kQ4_K, WeightType::kQ5_K,
                                        WeightType::kQ6_K};

// What a test multiplies, in host memory; several matrices share the input.
struct Case {
  size_t rows = 0;
  size_t columns = 0;
  std::vector<const OwnedWeights*> weights;
  InputRounding rounding = InputRounding::kPlain;
  MatMulStore store = MatMulStore::kReplace;
  std::vector<uint32_t> segment_ends = {};  // empty: as the device cuts them
};

constexpr size_t kExtraStride = 3;  // floats between rows of the results

std::vector<uint32_t> SegmentsOf(const Case& c) {
  if (!c.segment_ends.empty()) return c.segment_ends;
  const ColumnCut cut = CutColumns(c.columns);
  return {cut.ends, cut.ends + cut.count};
}

// Floats of the results of one product, all rows with their gaps.
size_t OutFloats(const Case& c, size_t product) {
  const size_t one = c.rows * (c.weights[product]->matrix.rows + kExtraStride);
  return c.store == MatMulStore::kPartials ? SegmentsOf(c).size() * one : one;
}

MatMulArgs ArgsOf(const Case& c, size_t product, const std::vector<uint32_t>& segment_ends) {
  MatMulArgs args;
  args.out_stride = c.weights[product]->matrix.rows + kExtraStride;
  args.store = c.store;
  args.segment_ends = segment_ends;
  args.partial_stride = c.rows * args.out_stride;
  return args;
}

std::vector<float> OutBefore(const Case& c, size_t product) {
  return c.store == MatMulStore::kAdd
             ? RandomFloats(OutFloats(c, product), 77)
             : std::vector<float>(OutFloats(c, product), std::numeric_limits<float>::quiet_NaN());
}

std::vector<std::vector<float>> OnHost(const Case& c, const std::vector<float>& x) {
  const std::unique_ptr<Backend> backend = MakeInt8Backend("auto");
  const std::vector<uint32_t> segments = SegmentsOf(c);
  std::vector<uint64_t> buffer(backend->MatMulInputBytes(c.rows, c.columns) / 8 + 16);
  uint8_t* aligned = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) / 64 * 64);
  const MatMulInput input = backend->PrepareInput({x.data(), c.rows, c.columns, aligned, c.rounding});
  std::vector<std::vector<float>> results;
  for (size_t i = 0; i < c.weights.size(); ++i) {
    const WeightMatrix& matrix = c.weights[i]->matrix;
    std::vector<uint64_t> packed(backend->PackedBytes(matrix) / 8 + 16);
    uint8_t* to = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(packed.data()) + 63) / 64 * 64);
    results.push_back(OutBefore(c, i));
    MatMulArgs args = ArgsOf(c, i, segments);
    args.x = input;
    args.weights = backend->Pack(matrix, to);
    args.out = results.back().data();
    backend->MatMul(args);
  }
  return results;
}

// Packs, rounds and multiplies on the device.
std::vector<std::vector<float>> OnDevice(const Case& c, const std::vector<float>& x) {
  TestDevice device;
  const DeviceArray<float> on_device(x);
  const DeviceBytes buffer(MatMulInputBytes(c.rows, c.columns));
  const MatMulInput input =
      PrepareInput(device.queue(), {on_device.data(), c.rows, c.columns, buffer.data(), c.rounding});
  std::vector<std::unique_ptr<DeviceBytes>> packed;
  std::vector<std::unique_ptr<DeviceArray<float>>> out;
  std::vector<MatMulArgs> products;
  for (size_t i = 0; i < c.weights.size(); ++i) {
    const WeightMatrix& matrix = c.weights[i]->matrix;
    packed.push_back(std::make_unique<DeviceBytes>(PackedBytes(matrix)));
    out.push_back(std::make_unique<DeviceArray<float>>(OutBefore(c, i)));
    MatMulArgs& args = products.emplace_back(ArgsOf(c, i, c.segment_ends));
    args.segment_ends = c.segment_ends;
    args.x = input;
    args.weights = Pack(device.queue(), matrix, packed.back()->data());
    args.out = out.back()->data();
  }
  MatMulAll(device.queue(), products);
  device.Wait();
  EXPECT_TRUE(on_device.Intact() && buffer.Intact());
  std::vector<std::vector<float>> results;
  for (size_t i = 0; i < c.weights.size(); ++i) {
    EXPECT_TRUE(packed[i]->Intact() && out[i]->Intact());
    results.push_back(out[i]->values());
  }
  return results;
}

// Bit for bit, NaN included, the gaps between rows too.
void ExpectSameBits(const std::vector<float>& actual, const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  size_t different = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const bool both_nan = std::isnan(actual[i]) && std::isnan(expected[i]);
    if (both_nan || std::memcmp(&actual[i], &expected[i], sizeof(float)) == 0) continue;
    if (different++ == 0) ADD_FAILURE() << "at " << i << ": " << actual[i] << ", expected " << expected[i];
  }
  EXPECT_EQ(different, 0u);
}

// A few columns stick out, as those of real activations do.
std::vector<float> Activations(size_t rows, size_t columns, uint32_t seed) {
  std::vector<float> x = RandomFloats(rows * columns, seed);
  for (size_t r = 0; r < rows; r += 2) x[r * columns + (7 * r + 3) % columns] = 60.0f + static_cast<float>(r);
  return x;
}

void ExpectHostsBits(const Case& c, uint32_t seed) {
  const std::vector<float> x = Activations(c.rows, c.columns, seed);
  const auto expected = OnHost(c, x);
  const auto actual = OnDevice(c, x);
  for (size_t i = 0; i < c.weights.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "product " << i << " of type "
                                    << static_cast<int>(c.weights[i]->matrix.type));
    ExpectSameBits(actual[i], expected[i]);
  }
}

class CudaMatMulInt8Test : public ::testing::TestWithParam<WeightType> {};
INSTANTIATE_TEST_SUITE_P(Types, CudaMatMulInt8Test, ::testing::ValuesIn(kTypes));

// Weight rows that do not fill a group, one group, several, more than a block of the kernel for many rows
// takes.
TEST_P(CudaMatMulInt8Test, HasTheHostsBitsForAnyNumberOfRows) {
  const size_t columns = 512;
  for (const size_t weight_rows : {size_t{5}, size_t{16}, size_t{83}}) {
    const OwnedWeights weights = RandomWeights(GetParam(), weight_rows, columns, 3);
    for (const size_t rows : {1, 3, 8, 9, 16, 17, 64, 70}) {
      SCOPED_TRACE(testing::Message() << weight_rows << " weight rows, " << rows << " rows");
      ExpectHostsBits({rows, columns, {&weights}, InputRounding::kRefineLargest}, 11);
    }
  }
}

TEST_P(CudaMatMulInt8Test, HasTheHostsBitsForAnyNumberOfColumns) {
  for (const size_t blocks : {1, 3, 9, 18}) {
    const size_t columns = blocks * WeightBlockElements(GetParam());
    const OwnedWeights weights = RandomWeights(GetParam(), 20, columns, 4);
    for (const size_t rows : {2, 20}) {
      SCOPED_TRACE(testing::Message() << columns << " columns, " << rows << " rows");
      ExpectHostsBits({rows, columns, {&weights}}, 12);
    }
  }
}

TEST_P(CudaMatMulInt8Test, StoresAddsAndKeepsPartsOfSums) {
  const size_t block = WeightBlockElements(GetParam()), columns = 6 * block;
  const OwnedWeights weights = RandomWeights(GetParam(), 33, columns, 5);
  const std::vector<uint32_t> ends = {static_cast<uint32_t>(block), static_cast<uint32_t>(2 * block),
                                      static_cast<uint32_t>(5 * block), static_cast<uint32_t>(columns)};
  for (const MatMulStore store : {MatMulStore::kReplace, MatMulStore::kAdd, MatMulStore::kPartials}) {
    for (const size_t rows : {1, 13, 66}) {
      SCOPED_TRACE(testing::Message() << "store " << static_cast<int>(store) << ", " << rows << " rows");
      ExpectHostsBits({rows, columns, {&weights}, InputRounding::kPlain, store, ends}, 13);
    }
  }
}

TEST_P(CudaMatMulInt8Test, WhatIsNotFiniteMakesItsRowNaN) {
  const size_t columns = 512;
  const OwnedWeights weights = RandomWeights(GetParam(), 18, columns, 6);
  for (const size_t rows : {5, 21}) {
    std::vector<float> x = Activations(rows, columns, 14);
    x[1 * columns + 40] = std::numeric_limits<float>::quiet_NaN();
    x[3 * columns + 500] = std::numeric_limits<float>::infinity();
    std::fill_n(x.begin() + 2 * static_cast<ptrdiff_t>(columns), columns, 0.0f);
    const Case c{rows, columns, {&weights}, InputRounding::kRefineLargest};
    const std::vector<float> actual = OnDevice(c, x).front();
    ExpectSameBits(actual, OnHost(c, x).front());
    EXPECT_TRUE(std::isnan(actual[1 * (18 + kExtraStride)]) && std::isnan(actual[3 * (18 + kExtraStride)]));
    EXPECT_FALSE(std::isnan(actual[0]));
  }
}

// Products of one input, of one type or of several, as a layer has them.
TEST(CudaMatMulAllTest, MultipliesSeveralMatrices) {
  const size_t columns = 512;
  const OwnedWeights queries = RandomWeights(WeightType::kQ4_K, 48, columns, 7);
  const OwnedWeights keys = RandomWeights(WeightType::kQ4_K, 16, columns, 8);
  const OwnedWeights values = RandomWeights(WeightType::kQ6_K, 24, columns, 9);
  const OwnedWeights more = RandomWeights(WeightType::kQ4_K, 17, columns, 10);
  for (const size_t rows : {1, 11, 30}) {
    SCOPED_TRACE(rows);
    ExpectHostsBits({rows, columns, {&queries, &keys, &values}, InputRounding::kRefineLargest}, 15);
    ExpectHostsBits({rows, columns, {&queries, &keys, &more, &keys}, InputRounding::kRefineLargest}, 16);
  }
}

TEST(CudaPrepareTest, RoundsAsTheHostDoesWhereverValuesComeFrom) {
  const size_t columns = 1056, rows = 6, weight_rows = 19;
  const OwnedWeights weights = RandomWeights(WeightType::kQ8_0, weight_rows, columns, 20);
  const std::vector<float> x = Activations(rows, columns, 21), up = RandomFloats(rows * columns, 22);
  const std::vector<float> norm = RandomFloats(columns, 23);
  const std::unique_ptr<Backend> host = MakeInt8Backend("auto");
  std::vector<float> normed(rows * columns), gated(rows * columns);
  host->RmsNorm({x.data(), norm.data(), normed.data(), rows, columns, 1e-5f});
  host->SwiGlu({x.data(), up.data(), gated.data(), rows * columns});

  TestDevice device;
  const DeviceBytes packed(PackedBytes(weights.matrix)), buffer(MatMulInputBytes(rows, columns));
  const WeightMatrix on_device = Pack(device.queue(), weights.matrix, packed.data());
  const DeviceArray<float> gate(x), other(up), factors(norm), kept(rows * columns), out(rows * weight_rows);
  const auto multiply = [&](const MatMulInput& input) {
    MatMulArgs product;
    product.x = input;
    product.weights = on_device;
    product.out = out.data();
    MatMulAll(device.queue(), {&product, 1});
    device.Wait();
    return out.values();
  };
  const Case c{rows, columns, {&weights}, InputRounding::kRefineLargest};
  const auto expected = [&](const std::vector<float>& values) {
    // Without the gaps between rows.
    const std::vector<float> with_gaps = OnHost(c, values).front();
    std::vector<float> result;
    for (size_t r = 0; r < rows; ++r) {
      const float* row = with_gaps.data() + r * (weight_rows + kExtraStride);
      result.insert(result.end(), row, row + weight_rows);
    }
    return result;
  };
  ExpectSameBits(multiply(NormAndPrepare(device.queue(),
                                         {{gate.data(), factors.data(), kept.data(), rows, columns, 1e-5f},
                                          {kept.data(), rows, columns, buffer.data(), c.rounding}})),
                 expected(normed));
  ExpectSameBits(kept.values(), normed);
  ExpectSameBits(
      multiply(SwiGluAndPrepare(device.queue(), {{gate.data(), other.data(), gate.data(), rows * columns},
                                                 {gate.data(), rows, columns, buffer.data(), c.rounding}})),
      expected(gated));
  ExpectSameBits(gate.values(), gated);
  EXPECT_TRUE(buffer.Intact() && kept.Intact() && gate.Intact() && out.Intact());
}

// What the caller does not say depends on the columns alone, and whole blocks stay whole.
TEST(CutColumnsTest, CutsAtBlocks) {
  for (const size_t columns : {32, 64, 256, 288, 512, 576, 4096, 11008, 14336}) {
    const ColumnCut cut = CutColumns(columns);
    const size_t unit = columns % 256 == 0 ? 256 : 32;
    ASSERT_GE(cut.count, 1u);
    EXPECT_EQ(cut.ends[cut.count - 1], columns);
    for (size_t i = 0; i < cut.count; ++i) {
      EXPECT_EQ(cut.ends[i] % unit, 0u);
      EXPECT_GT(cut.ends[i], i == 0 ? 0u : cut.ends[i - 1]);
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda
