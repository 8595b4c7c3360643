#include "worker/stage/rope_table.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

HyperParameters Shape(uint32_t rope_dims, double base) {
  HyperParameters shape;
  shape.rope_dims = rope_dims;
  shape.head_size = rope_dims;
  shape.rope_base = base;
  return shape;
}

FloatBuffer Make(const HyperParameters& shape, const std::vector<float>& divisors, uint32_t positions) {
  absl::StatusOr<FloatBuffer> table = MakeRopeTable(shape, divisors, positions);
  EXPECT_TRUE(table.ok()) << table.status();
  return *std::move(table);
}

// The angle carries two roundings to float (frequency, product), so it is off by 2^-23 of itself at most.
void ExpectAngle(const FloatBuffer& table, size_t pairs, uint32_t position, uint32_t pair, double angle) {
  const double tolerance = angle * 0x1p-23 + 1e-7;
  EXPECT_NEAR(table.data()[(position * pairs + pair) * 2], std::cos(angle), tolerance)
      << position << " " << pair;
  EXPECT_NEAR(table.data()[(position * pairs + pair) * 2 + 1], std::sin(angle), tolerance)
      << position << " " << pair;
}

TEST(RopeTableTest, HoldsCosineAndSineOfEveryPositionAndPair) {
  const FloatBuffer table = Make(Shape(64, 100000), {}, 2048);
  ASSERT_EQ(table.size(), 2048u * 32 * 2);
  for (uint32_t position : {0u, 1u, 2u, 777u, 2047u}) {
    for (uint32_t pair = 0; pair < 32; ++pair) {
      ExpectAngle(table, 32, position, pair, position * std::pow(100000, -2.0 * pair / 64));
    }
  }
}

TEST(RopeTableTest, LinearScalingDividesPositions) {
  HyperParameters shape = Shape(8, 10000);
  shape.rope_scaling = RopeScaling::kLinear;
  shape.rope_scale_factor = 4;
  const FloatBuffer table = Make(shape, {}, 100);
  for (uint32_t pair = 0; pair < 4; ++pair)
    ExpectAngle(table, 4, 90, pair, 22.5 * std::pow(10000, -2.0 * pair / 8));
}

TEST(RopeTableTest, NoScalingIgnoresTheFactor) {
  HyperParameters shape = Shape(8, 10000);
  shape.rope_scale_factor = 4;
  ExpectAngle(Make(shape, {}, 100), 4, 90, 0, 90);
}

TEST(RopeTableTest, DivisorsDivideFrequencies) {
  const FloatBuffer table = Make(Shape(8, 10000), {1, 2, 4.5f, 8}, 100);
  ExpectAngle(table, 4, 90, 0, 90);
  ExpectAngle(table, 4, 90, 1, 90 * 0.1 / 2);
  ExpectAngle(table, 4, 90, 2, 90 * 0.01 / 4.5);
  ExpectAngle(table, 4, 90, 3, 90 * 0.001 / 8);
}

TEST(RopeTableTest, RefusesDivisorsThatDoNotFit) {
  EXPECT_EQ(MakeRopeTable(Shape(8, 10000), {1, 1, 1}, 10).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (float bad :
       {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(MakeRopeTable(Shape(8, 10000), {1, 1, bad, 1}, 10).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(RopeTableTest, RefusesABaseThatIsNoNumber) {
  for (double bad : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    EXPECT_EQ(MakeRopeTable(Shape(8, bad), {}, 10).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(FloatBufferTest, IsZeroAndAligned) {
  absl::StatusOr<FloatBuffer> buffer = FloatBuffer::Allocate("x", {3, 7});
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(buffer->size(), 21u);
  EXPECT_EQ(buffer->bytes(), 84u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
  for (size_t i = 0; i < 21; ++i) EXPECT_EQ(buffer->data()[i], 0.0f);
}

TEST(FloatBufferTest, RefusesSizesThatOverflow) {
  const uint64_t big = uint64_t{1} << 32;
  for (const absl::Status& status :
       {FloatBuffer::Allocate("x", {big, big}).status(), FloatBuffer::Allocate("x", {big, big / 4}).status(),
        FloatBuffer::Allocate("x", {big, big / 8, 1}).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  }
}

}  // namespace
}  // namespace millrace
