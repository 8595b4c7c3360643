#include "worker/kv/kv_cache.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

KvCache::Shape SmallShape() {
  return {.num_layers = 3, .num_blocks = 5, .block_tokens = 32, .kv_heads = 2, .head_size = 8};
}

std::unique_ptr<KvCache> Make(const KvCache::Shape& shape) {
  absl::StatusOr<std::unique_ptr<KvCache>> cache = KvCache::Create(shape);
  EXPECT_TRUE(cache.ok()) << cache.status();
  return cache.ok() ? *std::move(cache) : nullptr;
}

absl::StatusCode Refusal(const KvCache::Shape& shape) {
  return KvCache::Create(shape).status().code();
}

TEST(KvCacheTest, BytesPerBlockCountsKeysAndValuesOfAllLayers) {
  EXPECT_EQ(SmallShape().BytesPerBlock(), 2u * 3 * 32 * 2 * 8 * 4);
}

TEST(KvCacheTest, BytesPerBlockDoesNotWrap) {
  constexpr uint32_t kMax = std::numeric_limits<uint32_t>::max();
  const KvCache::Shape shape{
      .num_layers = kMax, .num_blocks = 1, .block_tokens = kMax, .kv_heads = kMax, .head_size = kMax};
  EXPECT_EQ(shape.BytesPerBlock(), std::numeric_limits<uint64_t>::max());
}

TEST(KvCacheTest, LayersCarryTheShape) {
  const kernels::PagedKv kv = Make(SmallShape())->Layer(2);
  EXPECT_EQ(kv.block_tokens, 32u);
  EXPECT_EQ(kv.kv_heads, 2u);
  EXPECT_EQ(kv.head_size, 8u);
}

TEST(KvCacheTest, EveryFloatOfEveryLayerIsItsOwn) {
  const std::unique_ptr<KvCache> cache = Make(SmallShape());
  const size_t region = 5 * 32 * 2 * 8;
  float next = 1;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (float* blocks : {cache->Layer(layer).key_blocks, cache->Layer(layer).value_blocks}) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(blocks) % 64, 0u);
      for (size_t i = 0; i < region; ++i) {
        ASSERT_EQ(blocks[i], 0.0f) << "not written before";
        blocks[i] = next++;
      }
    }
  }
  next = 1;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (float* blocks : {cache->Layer(layer).key_blocks, cache->Layer(layer).value_blocks}) {
      for (size_t i = 0; i < region; ++i) ASSERT_EQ(blocks[i], next++);
    }
  }
}

TEST(KvCacheTest, RefusesCountsOfZero) {
  for (uint32_t KvCache::Shape::*count :
       {&KvCache::Shape::num_layers, &KvCache::Shape::num_blocks, &KvCache::Shape::block_tokens,
        &KvCache::Shape::kv_heads, &KvCache::Shape::head_size}) {
    KvCache::Shape shape = SmallShape();
    shape.*count = 0;
    EXPECT_EQ(Refusal(shape), absl::StatusCode::kInvalidArgument);
  }
}

TEST(KvCacheTest, RefusesBlocksThatAreNotWholeKeyGroups) {
  KvCache::Shape shape = SmallShape();
  shape.block_tokens = 24;
  EXPECT_EQ(Refusal(shape), absl::StatusCode::kInvalidArgument);
}

TEST(KvCacheTest, RefusesMoreMemoryThanTheMachineHas) {
  KvCache::Shape shape = SmallShape();
  shape.num_blocks = std::numeric_limits<uint32_t>::max();
  shape.kv_heads = 1 << 20;
  EXPECT_EQ(Refusal(shape), absl::StatusCode::kResourceExhausted) << "does not overflow";
  shape.head_size = std::numeric_limits<uint32_t>::max();
  EXPECT_EQ(Refusal(shape), absl::StatusCode::kResourceExhausted) << "overflows";
}

TEST(KvCacheTest, TakesMemoryOnFirstUse) {
  KvCache::Shape shape = SmallShape();
  shape.num_blocks = 4096;
  const std::unique_ptr<KvCache> cache = Make(shape);
  ASSERT_NE(cache, nullptr);
  const kernels::PagedKv first = cache->Layer(0);
  const size_t pages = shape.BytesPerBlock() * shape.num_blocks / sysconf(_SC_PAGESIZE);
  const auto resident = [&] {
    std::vector<unsigned char> states(pages + 1);
    EXPECT_EQ(mincore(first.key_blocks, shape.BytesPerBlock() * shape.num_blocks, states.data()), 0);
    return std::count_if(states.begin(), states.end(), [](unsigned char state) { return (state & 1) != 0; });
  };
  EXPECT_EQ(resident(), 0);
  first.key_blocks[0] = 1;
  EXPECT_GE(resident(), 1);
}

}  // namespace
}  // namespace millrace
