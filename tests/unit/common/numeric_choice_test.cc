#include "common/numeric_choice.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(NumericChoiceTest, NamesActivationTypes) {
  EXPECT_EQ(ParseActivationType("f32"), ActivationType::kF32);
  EXPECT_EQ(ParseActivationType("int8"), ActivationType::kInt8);
  EXPECT_EQ(ParseActivationType("f16"), std::nullopt);
  EXPECT_EQ(ParseActivationType(""), std::nullopt);
}

TEST(NumericChoiceTest, NamesTheNumericClass) {
  EXPECT_EQ(NumericClass("cpu", {ActivationType::kF32, KvType::kF32}), "cpu/f32/kv-f32");
  EXPECT_EQ(NumericClass("cpu", {ActivationType::kInt8, KvType::kF16}), "cpu/int8/kv-f16");
  EXPECT_FALSE((NumericChoice{ActivationType::kInt8, KvType::kF16} ==
                NumericChoice{ActivationType::kInt8, KvType::kI8}));
}

}  // namespace
}  // namespace millrace
