#include "worker/kv/kv_cache.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>
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

TEST(KvCacheTest, BytesPerBlockCountsScales) {
  KvCache::Shape shape = SmallShape();
  shape.type = KvType::kF16;
  EXPECT_EQ(shape.BytesPerBlock(), 2u * 3 * 32 * 2 * 8 * 2);
  shape.type = KvType::kI8;
  EXPECT_EQ(shape.BytesPerBlock(), 2u * 3 * 32 * 2 * (8 + 4));
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

// Everything that the kernels may write, a layer's keys, values and scales: where, and how many bytes.
std::vector<std::pair<uint8_t*, size_t>> RegionsOf(const KvCache& cache) {
  const KvCache::Shape& shape = cache.shape();
  const size_t positions = size_t{shape.num_blocks} * shape.block_tokens * shape.kv_heads;
  std::vector<std::pair<uint8_t*, size_t>> regions;
  for (uint32_t layer = 0; layer < shape.num_layers; ++layer) {
    const kernels::PagedKv kv = cache.Layer(layer);
    const size_t bytes = positions * shape.head_size * kernels::KvElementBytes(kv.type);
    regions.emplace_back(kv.key_blocks, bytes);
    regions.emplace_back(kv.value_blocks, bytes);
    if (shape.type == KvType::kI8) {
      regions.emplace_back(reinterpret_cast<uint8_t*>(kv.key_scales), positions * sizeof(float));
      regions.emplace_back(reinterpret_cast<uint8_t*>(kv.value_scales), positions * sizeof(float));
    } else {
      EXPECT_EQ(kv.key_scales, nullptr);
      EXPECT_EQ(kv.value_scales, nullptr);
    }
  }
  return regions;
}

TEST(KvCacheTest, EveryByteOfEveryLayerIsItsOwn) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kI8}) {
    KvCache::Shape shape = SmallShape();
    shape.type = type;
    shape.head_size = 9;  // regions are no whole cache lines
    const std::unique_ptr<KvCache> cache = Make(shape);
    uint32_t next = 1;
    size_t bytes = 0;
    for (const auto& [begin, size] : RegionsOf(*cache)) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(begin) % 64, 0u);
      bytes += size;
      for (size_t i = 0; i < size; ++i) {
        ASSERT_EQ(begin[i], 0) << "not written before";
        begin[i] = static_cast<uint8_t>(next++ % 251);
      }
    }
    EXPECT_EQ(bytes, shape.BytesPerBlock() * shape.num_blocks);
    next = 1;
    for (const auto& [begin, size] : RegionsOf(*cache)) {
      for (size_t i = 0; i < size; ++i) ASSERT_EQ(begin[i], next++ % 251);
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

TEST(KvCacheTest, EveryShardOfEveryLayerHasItsOwnFloats) {
  KvCache::Shape shape = SmallShape();
  shape.kv_heads = 6;
  shape.shard_kv_heads = {1, 3, 2};
  const std::unique_ptr<KvCache> cache = Make(shape);
  float next = 1;
  uint64_t bytes = 0;
  for (int pass = 0; pass < 2; ++pass) {
    next = 1;
    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t shard = 0; shard < 3; ++shard) {
        const kernels::PagedKv kv = cache->Layer(layer, shard);
        ASSERT_EQ(kv.kv_heads, shape.shard_kv_heads[shard]);
        for (uint8_t* bytes_of_blocks : {kv.key_blocks, kv.value_blocks}) {
          float* blocks = reinterpret_cast<float*>(bytes_of_blocks);
          for (size_t i = 0; i < 5 * 32 * kv.kv_heads * 8; ++i, ++next) {
            if (pass == 0) blocks[i] = next;
            ASSERT_EQ(blocks[i], next) << "another shard's or layer's";
          }
        }
      }
    }
  }
  for (uint32_t shard = 0; shard < 3; ++shard) bytes += cache->ShardBytes(shard);
  EXPECT_EQ(bytes, shape.BytesPerBlock() * shape.num_blocks);
  EXPECT_EQ(cache->ShardBytes(1), bytes / 2);
}

TEST(KvCacheTest, RefusesShardsThatDoNotHaveTheHeadsTogether) {
  for (const std::vector<uint32_t>& shards :
       std::vector<std::vector<uint32_t>>{{1}, {2, 1}, {2, 0}, {~0u, 3}}) {
    KvCache::Shape shape = SmallShape();
    shape.shard_kv_heads = shards;
    EXPECT_EQ(Refusal(shape), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace millrace
