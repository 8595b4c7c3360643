#include "common/kv_type.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(KvTypeTest, CountsTheScaleOfInt8) {
  EXPECT_EQ(KvHeadBytes(KvType::kF32, 64), 256u);
  EXPECT_EQ(KvHeadBytes(KvType::kF16, 64), 128u);
  EXPECT_EQ(KvHeadBytes(KvType::kI8, 64), 68u);
  EXPECT_EQ(KvHeadBytes(KvType::kF32, 0xFFFFFFFFu), uint64_t{0xFFFFFFFFu} * 4) << "does not wrap";
}

TEST(KvTypeTest, NamesAreReadBack) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kI8}) {
    EXPECT_EQ(ParseKvType(KvTypeName(type)), type);
  }
  EXPECT_EQ(ParseKvType("int8"), KvType::kI8);
  EXPECT_EQ(ParseKvType("auto"), std::nullopt);
  EXPECT_EQ(ParseKvType(""), std::nullopt);
}

}  // namespace
}  // namespace millrace
