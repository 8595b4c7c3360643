// Against tests/golden/dequantize.txt, made with the Python package `gguf`.
#include <fstream>
#include <map>
#include <sstream>

#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels {
namespace {

struct GoldenRow {
  OwnedWeights weights;
  std::vector<float> values;
};

std::vector<GoldenRow> ReadGolden() {
  const std::map<std::string, WeightType> types = {{"F32", WeightType::kF32},   {"F16", WeightType::kF16},
                                                   {"BF16", WeightType::kBF16}, {"Q8_0", WeightType::kQ8_0},
                                                   {"Q4_0", WeightType::kQ4_0}, {"Q4_1", WeightType::kQ4_1},
                                                   {"Q5_0", WeightType::kQ5_0}, {"Q4_K", WeightType::kQ4_K},
                                                   {"Q5_K", WeightType::kQ5_K}, {"Q6_K", WeightType::kQ6_K}};
  std::ifstream file("tests/golden/dequantize.txt");
  std::vector<GoldenRow> rows;
  std::string type, bytes, values;
  size_t columns = 0;
  while (file >> type >> columns >> bytes >> values) {
    GoldenRow row;
    for (size_t i = 0; i < bytes.size(); i += 2) {
      row.weights.bytes.push_back(static_cast<uint8_t>(std::stoul(bytes.substr(i, 2), nullptr, 16)));
    }
    for (size_t i = 0; i < values.size(); i += 8) {
      const uint32_t bits = static_cast<uint32_t>(std::stoul(values.substr(i, 8), nullptr, 16));
      row.values.emplace_back();
      std::memcpy(&row.values.back(), &bits, sizeof(bits));
    }
    row.weights.matrix = {nullptr, types.at(type), 1, columns, row.weights.bytes.size()};
    rows.push_back(std::move(row));
    rows.back().weights.matrix.data = rows.back().weights.bytes.data();
  }
  return rows;
}

class DequantizeTest : public ::testing::TestWithParam<std::string> {};

TEST_P(DequantizeTest, EmbedGivesTheBitsOfTheGoldenValues) {
  const std::vector<GoldenRow> golden = ReadGolden();
  ASSERT_EQ(golden.size(), 60u);
  for (const GoldenRow& row : golden) {
    const uint32_t ids[] = {0};
    GuardedFloats out(row.values.size());
    MakeBackend(GetParam())->Embed({ids, 1, row.weights.matrix, out.data()});
    EXPECT_TRUE(out.Intact());
    EXPECT_TRUE(millrace::testing::IsBitEqual(out.values(), row.values));
  }
}

// Unit vectors pick single weights out of a product, in the path for few rows and in the one for many.
TEST_P(DequantizeTest, MatMulSeesTheGoldenValues) {
  for (const GoldenRow& row : ReadGolden()) {
    if (WeightBlockElements(row.weights.matrix.type) == 1) continue;
    const size_t k = row.values.size();
    MatMulCase c;
    c.weights = &row.weights;
    c.rows = k;
    c.x.assign(k * k, 0.0f);
    for (size_t i = 0; i < k; ++i) c.x[i * k + i] = 1.0f;
    const auto backend = MakeBackend(GetParam());
    EXPECT_TRUE(
        millrace::testing::IsClose(RunMatMul(*backend, c), row.values, millrace::testing::Tolerance{}));
    c.rows = 1;
    for (size_t i = 0; i < k; ++i) {
      c.x.assign(k, 0.0f);
      c.x[i] = 1.0f;
      EXPECT_EQ(RunMatMul(*backend, c)[0], row.values[i]);
    }
  }
}

TEST_P(DequantizeTest, EmbedGathersRowsInTheOrderOfTheirIds) {
  for (const WeightType type : kWeightTypes) {
    const size_t columns = AtLeastABlock(type, 96);
    const OwnedWeights table = RandomWeights(type, 7, columns, 11);
    const std::vector<uint32_t> ids = {6, 0, 3, 3, 5};
    GuardedFloats out(ids.size() * columns);
    GuardedFloats expected(ids.size() * columns);
    MakeBackend(GetParam())->Embed({ids.data(), ids.size(), table.matrix, out.data()});
    for (size_t i = 0; i < ids.size(); ++i) {
      MakeReferenceBackend()->Embed({&ids[i], 1, table.matrix, expected.data() + i * columns});
    }
    EXPECT_TRUE(out.Intact());
    EXPECT_TRUE(millrace::testing::IsBitEqual(out.values(), expected.values()));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, DequantizeTest, ::testing::ValuesIn(AllBackends()), ParamName);

}  // namespace
}  // namespace millrace::kernels
