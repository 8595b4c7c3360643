// RmsNorm, Rope, SwiGlu, AddPartials and Embed on a device: the bits of the CPU backend.
#include "kernels/cuda/elementwise.h"

#include <cmath>
#include <limits>

#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels::cuda {
namespace {

using millrace::testing::IsBitEqual;

// Some that end in the middle of four elements, of the sixteen lanes and of a block's tile; one of two tiles.
const std::vector<size_t> kLengths = {1, 3, 4, 15, 16, 17, 33, 96, 577, 1024, 2047, 2064, 4097};

// Starts `shift` floats behind an address that is a multiple of 16 bytes.
class DeviceFloats {
 public:
  DeviceFloats(const std::vector<float>& values, size_t shift)
      : array_(Shifted(values, shift)), shift_(shift) {}
  DeviceFloats(size_t count, size_t shift) : array_(count + shift), shift_(shift) {}
  float* data() const { return array_.data() + shift_; }
  std::vector<float> values() const {
    const std::vector<float> all = array_.values();
    return std::vector<float>(all.begin() + static_cast<std::ptrdiff_t>(shift_), all.end());
  }
  bool Intact() const { return array_.Intact(); }

 private:
  static std::vector<float> Shifted(const std::vector<float>& values, size_t shift) {
    std::vector<float> shifted(shift, 0.0f);
    shifted.insert(shifted.end(), values.begin(), values.end());
    return shifted;
  }
  DeviceArray<float> array_;
  size_t shift_;
};

class CudaElementwiseTest : public ::testing::Test {
 protected:
  TestDevice device_;
  const std::unique_ptr<Backend> cpu_ = MakeBackend("portable");
};

TEST_F(CudaElementwiseTest, RmsNormGivesTheBitsOfTheCpu) {
  for (const size_t columns : kLengths) {
    const size_t rows = 3;
    const std::vector<float> x = RandomFloats(rows * columns, 1, 30.0f),
                             weight = RandomFloats(columns, 2, 2.0f);
    std::vector<float> expected(x.size());
    cpu_->RmsNorm({x.data(), weight.data(), expected.data(), rows, columns, 1e-5f});
    for (const size_t shift : {0, 1}) {
      DeviceFloats in(x, shift), w(weight, shift), out(x.size(), shift);
      RmsNorm(device_.queue(), {in.data(), w.data(), out.data(), rows, columns, 1e-5f});
      RmsNorm(device_.queue(), {in.data(), w.data(), in.data(), rows, columns, 1e-5f});
      device_.Wait();
      EXPECT_TRUE(IsBitEqual(out.values(), expected)) << columns;
      EXPECT_TRUE(IsBitEqual(in.values(), expected)) << columns << ", in place";
      EXPECT_TRUE(in.Intact() && w.Intact() && out.Intact());
    }
  }
}

TEST_F(CudaElementwiseTest, RmsNormPassesNanOn) {
  std::vector<float> x = RandomFloats(3 * 40, 3);
  x[45] = std::numeric_limits<float>::quiet_NaN();
  DeviceFloats inout(x, 0), w(std::vector<float>(40, 1.0f), 0);
  RmsNorm(device_.queue(), {inout.data(), w.data(), inout.data(), 3, 40, 1e-5f});
  device_.Wait();
  const std::vector<float> out = inout.values();
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 40 == 1) << i;
}

TEST_F(CudaElementwiseTest, SwiGluGivesTheBitsOfTheCpu) {
  std::vector<float> range;
  for (float v = -120.0f; v <= 120.0f; v += 0.037f) range.push_back(v);
  for (const float v : {0.0f, -0.0f, 1e-30f, -1e-30f, 1e30f, 3e38f, -3e38f}) range.push_back(v);
  range.push_back(std::numeric_limits<float>::infinity());
  std::vector<std::vector<float>> gates = {range};
  for (const size_t count : kLengths) gates.push_back(RandomFloats(count, 4, 20.0f));
  for (const std::vector<float>& gate : gates) {
    const std::vector<float> up = RandomFloats(gate.size(), 5, 3.0f);
    std::vector<float> expected(gate.size());
    cpu_->SwiGlu({gate.data(), up.data(), expected.data(), gate.size()});
    for (const size_t shift : {0, 3}) {
      DeviceFloats g(gate, shift), u(up, shift), out(gate.size(), shift);
      SwiGlu(device_.queue(), {g.data(), u.data(), out.data(), gate.size()});
      SwiGlu(device_.queue(), {g.data(), u.data(), u.data(), gate.size()});
      device_.Wait();
      EXPECT_TRUE(IsBitEqual(out.values(), expected)) << gate.size();
      EXPECT_TRUE(IsBitEqual(u.values(), expected)) << gate.size() << ", in place";
      EXPECT_TRUE(g.Intact() && u.Intact() && out.Intact());
    }
  }
}

TEST_F(CudaElementwiseTest, SwiGluPassesNanOn) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  DeviceFloats gate({nan, 1, 2, 3, 4}, 0), up({1, nan, 2, 3, 4}, 0), out(5, 0);
  SwiGlu(device_.queue(), {gate.data(), up.data(), out.data(), 5});
  device_.Wait();
  const std::vector<float> values = out.values();
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(std::isnan(values[i]), i < 2) << i;
}

TEST_F(CudaElementwiseTest, RopeGivesTheBitsOfTheCpu) {
  struct Shape {
    size_t rows, heads, head_size, rope_dims;
  };
  for (const Shape& s : {Shape{1, 1, 2, 2}, {3, 2, 7, 4}, {5, 3, 64, 64}, {2, 9, 128, 128}, {4, 2, 80, 32}}) {
    std::vector<uint32_t> positions;
    for (size_t r = 0; r < s.rows; ++r) positions.push_back(static_cast<uint32_t>((r * 17 + 3) % 50));
    const std::vector<float> x = RandomFloats(s.rows * s.heads * s.head_size, 6);
    const std::vector<float> table = RandomFloats(50 * s.rope_dims, 7);
    std::vector<float> expected = x;
    cpu_->Rope({expected.data(), positions.data(), s.rows, s.heads, s.head_size, s.rope_dims, table.data()});
    DeviceFloats inout(x, 0), cos_sin(table, 0);
    const DeviceArray<uint32_t> at(positions);
    Rope(device_.queue(),
         {inout.data(), at.data(), s.rows, s.heads, s.head_size, s.rope_dims, cos_sin.data()});
    device_.Wait();
    EXPECT_TRUE(IsBitEqual(inout.values(), expected)) << s.head_size;
    EXPECT_TRUE(inout.Intact() && cos_sin.Intact());
  }
}

TEST_F(CudaElementwiseTest, AddPartialsGivesTheBitsOfTheCpu) {
  struct Shape {
    size_t rows, columns, begin, end, partials;
  };
  // More partials than a launch adds; more rows than a grid has; slices that begin and end anywhere.
  for (const Shape& s : {Shape{1, 64, 0, 64, 1},
                         {3, 65, 1, 64, 2},
                         {2, 576, 192, 384, 12},
                         {1, 577, 5, 7, 3},
                         {2, 40, 3, 39, 2 * kPartialsPerLaunch + 1},
                         {65537, 1, 0, 1, 2},
                         {2, 8, 4, 4, 1}}) {
    const std::vector<float> out = RandomFloats(s.rows * s.columns, 8);
    for (const size_t shift : {0, 1}) {
      std::vector<std::unique_ptr<DeviceFloats>> on_device;
      std::vector<std::vector<float>> on_host;
      std::vector<const float*> device_pointers, host_pointers;
      for (size_t p = 0; p < s.partials; ++p) {
        on_host.push_back(RandomFloats(out.size(), static_cast<uint32_t>(9 + p)));
        on_device.push_back(std::make_unique<DeviceFloats>(on_host.back(), shift));
        device_pointers.push_back(on_device.back()->data());
      }
      for (const std::vector<float>& partial : on_host) host_pointers.push_back(partial.data());
      std::vector<float> expected = out;
      cpu_->AddPartials({host_pointers, expected.data(), s.rows, s.columns, s.begin, s.end});
      DeviceFloats sums(out, shift);
      AddPartials(device_.queue(), {device_pointers, sums.data(), s.rows, s.columns, s.begin, s.end});
      device_.Wait();
      EXPECT_TRUE(IsBitEqual(sums.values(), expected)) << s.columns;
      EXPECT_TRUE(sums.Intact());
    }
  }
}

TEST_F(CudaElementwiseTest, EmbedGivesTheBitsOfTheCpu) {
  for (const WeightType type : kWeightTypes) {
    for (const size_t blocks : {1, 3}) {
      const size_t columns = blocks * (WeightBlockElements(type) == 1 ? 37 : WeightBlockElements(type));
      const OwnedWeights table = RandomWeights(type, 5, columns, 10);
      const std::vector<uint32_t> ids = {4, 0, 2, 2};
      std::vector<float> expected(ids.size() * columns);
      cpu_->Embed({ids.data(), ids.size(), table.matrix, expected.data()});
      // RandomWeights' rows are as long as their blocks.
      DeviceBytes bytes(5 * table.matrix.row_bytes);
      bytes.Upload(table.matrix.data);
      WeightMatrix on_device = table.matrix;
      on_device.data = bytes.data();
      const DeviceArray<uint32_t> device_ids(ids);
      DeviceFloats out(expected.size(), 0);
      Embed(device_.queue(), {device_ids.data(), ids.size(), on_device, out.data()});
      device_.Wait();
      EXPECT_TRUE(IsBitEqual(out.values(), expected)) << static_cast<int>(type);
      EXPECT_TRUE(out.Intact() && bytes.Intact());
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda
