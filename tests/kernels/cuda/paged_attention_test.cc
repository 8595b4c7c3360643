// Attention, and what stores keys and values, on a device.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/kv_layout.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels::cuda {
namespace {

using millrace::testing::IsBitEqual;
using millrace::testing::IsClose;
using millrace::testing::Tolerance;

struct Shape {
  size_t heads, kv_heads, head_size, block_tokens, context;
};

std::string Describe(const Shape& s, KvType type) {
  return "heads " + std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " of " +
         std::to_string(s.head_size) + ", blocks of " + std::to_string(s.block_tokens) + ", context " +
         std::to_string(s.context) + (type == KvType::kI8 ? ", int8" : ", f16");
}

// Rows of one sequence in a batch.
struct Rows {
  size_t first, count;
};

// A cache on the device with one sequence in it, whose blocks lie in disorder; everything else is 0xff: NaN.
class Attended {
 public:
  Attended(const Shape& shape, KvType type, size_t max_rows)
      : shape_(shape),
        max_rows_(max_rows),
        blocks_((shape.context + shape.block_tokens - 1) / shape.block_tokens + 3),
        keys_(CacheBytes(type)),
        values_(CacheBytes(type)),
        key_scales_(type == KvType::kI8 ? Positions() : 1),
        value_scales_(type == KvType::kI8 ? Positions() : 1),
        tables_(BatchBytes(max_rows, shape.context, shape.block_tokens)),
        staging_(tables_.size()),
        scratch_(AttentionScratch({max_rows, shape.heads, shape.head_size, shape.context}) + 1),
        ids_(blocks_) {
    std::iota(ids_.begin(), ids_.end(), 0u);
    std::shuffle(ids_.begin(), ids_.end(), std::mt19937(7));
    kv_ = {keys_.data(),
           values_.data(),
           type == KvType::kI8 ? key_scales_.data() : nullptr,
           type == KvType::kI8 ? value_scales_.data() : nullptr,
           type,
           shape.block_tokens,
           shape.kv_heads,
           shape.head_size};
  }

  // Of sequence rows given in `batch` order, padded to `padded` rows: stores, and attends.
  std::vector<float> Run(const std::vector<Rows>& batch, const std::vector<float>& queries,
                         const std::vector<float>& keys, const std::vector<float>& values,
                         size_t padded = 0) {
    std::vector<KvSegment> segments;
    std::vector<uint32_t> positions;
    for (const Rows& rows : batch) {
      segments.push_back({ids_.data(), static_cast<uint32_t>(rows.first), positions.size(), rows.count});
      for (size_t i = 0; i < rows.count; ++i) positions.push_back(static_cast<uint32_t>(rows.first + i));
    }
    const size_t rows = std::max(padded, positions.size());
    PlaceBatchArgs place;
    place.segments = segments;
    place.positions = positions.data();
    place.rows = rows;
    place.max_rows = max_rows_;
    place.block_tokens = shape_.block_tokens;
    place.context_tokens = shape_.context;
    place.buffer = tables_.data();
    place.staging = staging_.data();
    const BatchRows placed = PlaceBatch(device_.queue(), place);
    const DeviceArray<float> q(Gather(batch, queries, shape_.heads, rows)),
        k(Gather(batch, keys, shape_.kv_heads, rows)), v(Gather(batch, values, shape_.kv_heads, rows)),
        out(rows * shape_.heads * shape_.head_size);
    StoreKv(device_.queue(), {kv_, k.data(), v.data(), placed.segments, placed.tables, rows});
    PagedAttention(device_.queue(), {kv_, q.data(), out.data(), placed.segments, shape_.heads,
                                     1.0f / std::sqrt(static_cast<float>(shape_.head_size)), scratch_.data(),
                                     placed.tables, rows});
    device_.Wait();
    EXPECT_TRUE(keys_.Intact() && values_.Intact() && key_scales_.Intact() && value_scales_.Intact());
    EXPECT_TRUE(tables_.Intact() && scratch_.Intact() && out.Intact() && q.Intact());
    return out.values();
  }

  const PagedKv& kv() const { return kv_; }
  const std::vector<uint32_t>& ids() const { return ids_; }
  const DeviceBytes& keys() const { return keys_; }
  const DeviceBytes& values() const { return values_; }
  const DeviceArray<float>& key_scales() const { return key_scales_; }
  const DeviceArray<float>& value_scales() const { return value_scales_; }
  const TestDevice& device() const { return device_; }

 private:
  size_t Positions() const { return blocks_ * shape_.block_tokens * shape_.kv_heads; }
  size_t CacheBytes(KvType type) const { return Positions() * shape_.head_size * KvElementBytes(type); }
  // Rows that belong to nobody are NaN.
  std::vector<float> Gather(const std::vector<Rows>& batch, const std::vector<float>& all, size_t heads,
                            size_t rows) const {
    const size_t width = heads * shape_.head_size;
    std::vector<float> gathered;
    for (const Rows& part : batch) {
      gathered.insert(gathered.end(), all.begin() + static_cast<std::ptrdiff_t>(part.first * width),
                      all.begin() + static_cast<std::ptrdiff_t>((part.first + part.count) * width));
    }
    gathered.resize(rows * width, std::numeric_limits<float>::quiet_NaN());
    return gathered;
  }

  Shape shape_;
  size_t max_rows_;
  size_t blocks_;
  TestDevice device_;
  DeviceBytes keys_, values_;
  DeviceArray<float> key_scales_, value_scales_;
  DeviceBytes tables_;
  std::vector<uint8_t> staging_;
  DeviceArray<float> scratch_;
  std::vector<uint32_t> ids_;
  PagedKv kv_;
};

struct Data {
  explicit Data(const Shape& s)
      : queries(RandomFloats(s.context * s.heads * s.head_size, 1, 2.0f)),
        keys(RandomFloats(s.context * s.kv_heads * s.head_size, 2, 2.0f)),
        values(RandomFloats(s.context * s.kv_heads * s.head_size, 3)) {}
  std::vector<float> queries, keys, values;
};

// What float32 keys and values give on the host, of all rows.
std::vector<float> Expect(const Shape& s, const Data& data, size_t first) {
  std::vector<float> out;
  const size_t group = s.heads / s.kv_heads;
  for (size_t row = first; row < s.context; ++row) {
    for (size_t head = 0; head < s.heads; ++head) {
      std::vector<double> weights(row + 1);
      const auto at = [&](size_t t, size_t d) { return (t * s.kv_heads + head / group) * s.head_size + d; };
      for (size_t t = 0; t <= row; ++t) {
        for (size_t d = 0; d < s.head_size; ++d) {
          weights[t] += static_cast<double>(data.queries[(row * s.heads + head) * s.head_size + d]) *
                        static_cast<double>(data.keys[at(t, d)]);
        }
        weights[t] /= std::sqrt(static_cast<double>(s.head_size));
      }
      const double most = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - most);
      for (size_t d = 0; d < s.head_size; ++d) {
        double value = 0;
        for (size_t t = 0; t <= row; ++t) value += weights[t] * static_cast<double>(data.values[at(t, d)]);
        out.push_back(static_cast<float>(value / sum));
      }
    }
  }
  return out;
}

// Queries and keys, at most 2, are off by a part of `key` and 2^-11: a score, of head_size products over its
// square root, by at most sqrt(head_size) * 4 * (key + 2^-11), its weight by that part of itself (twice, by
// the sum). Weights are off by 2^-11 of themselves and values, at most 1, by `value`.
Tolerance ToleranceOf(const Shape& s, KvType type) {
  const double rounding = type == KvType::kI8 ? 1.0 / 254 : 0x1p-11;
  const double score = std::sqrt(static_cast<double>(s.head_size)) * 4 * (rounding + 0x1p-11);
  return {(std::exp(2 * score) - 1) + rounding + 0x1p-10, 0};
}

const std::vector<KvType> kTypes = {KvType::kF16, KvType::kI8};

// Groups of 1 to 9 heads and of 30, which take several blocks; every size of head tiles; contexts round the
// borders of tiles and splits.
const std::vector<Shape> kShapes = {{4, 2, 16, 16, 40},  {9, 3, 64, 32, 70},   {6, 6, 80, 16, 17},
                                    {5, 1, 96, 48, 33},  {2, 1, 256, 64, 270}, {8, 1, 128, 16, 257},
                                    {7, 1, 32, 16, 256}, {30, 1, 16, 16, 262}, {3, 3, 64, 16, 530}};

TEST(CudaPagedAttentionTest, IsCloseToDenseAttention) {
  for (const Shape& shape : kShapes) {
    const Data data(shape);
    const size_t first = shape.context > 100 ? shape.context - 20 : 0;
    const std::vector<float> expected = Expect(shape, data, first);
    for (const KvType type : kTypes) {
      Attended cache(shape, type, shape.context);
      if (first > 0) cache.Run({{0, first}}, data.queries, data.keys, data.values);
      const std::vector<float> out =
          cache.Run({{first, shape.context - first}}, data.queries, data.keys, data.values);
      EXPECT_TRUE(IsClose(out, expected, ToleranceOf(shape, type))) << Describe(shape, type);
    }
  }
}

TEST(CudaPagedAttentionTest, GivesTheSameBitsWhateverTheChunks) {
  for (const Shape& shape : kShapes) {
    const Data data(shape);
    for (const KvType type : kTypes) {
      const size_t width = shape.heads * shape.head_size;
      Attended whole(shape, type, shape.context);
      const std::vector<float> expected =
          whole.Run({{0, shape.context}}, data.queries, data.keys, data.values);
      // Chunks of more rows than are split over blocks, of fewer, and of one row at the end.
      Attended chunks(shape, type, shape.context);
      std::vector<float> out;
      size_t done = 0;
      for (const size_t chunk : {shape.context / 2, size_t{5}, shape.context}) {
        const size_t end = std::min(done + chunk, shape.context - 3);
        const std::vector<float> part =
            chunks.Run({{done, end - done}}, data.queries, data.keys, data.values);
        out.insert(out.end(), part.begin(), part.end());
        done = end;
      }
      for (; done < shape.context; ++done) {
        // With rows that belong to nobody, whose results are zeros.
        std::vector<float> part = chunks.Run({{done, 1}}, data.queries, data.keys, data.values, 4);
        EXPECT_TRUE(std::all_of(part.begin() + static_cast<std::ptrdiff_t>(width), part.end(),
                                [](float x) { return x == 0; }));
        part.resize(width);
        out.insert(out.end(), part.begin(), part.end());
      }
      EXPECT_TRUE(IsBitEqual(out, expected)) << Describe(shape, type);
    }
  }
}

float Half(const std::vector<uint8_t>& bytes, size_t at) {
  __half_raw raw;
  raw.x = static_cast<uint16_t>(bytes[2 * at] | bytes[2 * at + 1] << 8);
  return __half2float(__half(raw));
}

// Against what the CPU backend stores, which lies in another order.
TEST(CudaStoreKvTest, StoresWhatTheCpuStores) {
  const Shape shape = {2, 2, 48, 32, 53};
  Data data(shape);
  data.keys[0] = std::numeric_limits<float>::infinity();
  std::fill_n(data.values.begin() + 48, 48, 0x1p-130f);
  const auto cpu = MakeBackend("portable");
  for (const KvType type : kTypes) {
    Attended cache(shape, type, shape.context);
    cache.Run({{0, shape.context}}, data.queries, data.keys, data.values);
    std::vector<uint8_t> keys(cache.keys().size()), values(cache.values().size());
    cache.keys().Download(keys.data());
    cache.values().Download(values.data());
    std::vector<uint8_t> host_keys(keys.size()), host_values(values.size());
    std::vector<float> host_key_scales(cache.key_scales().size()), host_value_scales(host_key_scales.size());
    PagedKv kv = cache.kv();
    kv.key_blocks = host_keys.data();
    kv.value_blocks = host_values.data();
    kv.key_scales = type == KvType::kI8 ? host_key_scales.data() : nullptr;
    kv.value_scales = type == KvType::kI8 ? host_value_scales.data() : nullptr;
    const KvSegment segment{cache.ids().data(), 0, 0, shape.context};
    cpu->StoreKv({kv, data.keys.data(), data.values.data(), {&segment, 1}, nullptr, shape.context});
    const KvShape layout{32, 2, 48};
    for (uint32_t t = 0; t < shape.context; ++t) {
      const uint32_t block = cache.ids()[t / 32], slot = t % 32;
      for (uint32_t head = 0; head < 2; ++head) {
        for (uint32_t dim = 0; dim < 48; ++dim) {
          const size_t key = layout.KeyAt(block, head, slot, dim),
                       value = layout.ValueAt(block, head, slot, dim);
          const size_t host_key = layout.HeadAt(block, head) + slot / 16 * 16 * 48 + dim * 16 + slot % 16;
          const size_t host_value = layout.HeadAt(block, head) + slot * 48 + dim;
          if (type == KvType::kI8) {
            ASSERT_EQ(keys[key], host_keys[host_key]);
            ASSERT_EQ(values[value], host_values[host_value]);
          } else {
            ASSERT_EQ(Half(keys, key), Half(host_keys, host_key));
            ASSERT_EQ(Half(values, value), Half(host_values, host_value));
          }
        }
        if (type != KvType::kI8) continue;
        const size_t at = layout.ScaleAt(block, head, slot);
        ASSERT_TRUE(IsBitEqual({cache.value_scales().values()[at]}, {host_value_scales[at]}));
        const float scale = cache.key_scales().values()[at];
        ASSERT_TRUE(std::isnan(host_key_scales[at]) ? std::isnan(scale) : scale == host_key_scales[at]);
      }
    }
  }
}

TEST(CudaStoreKvTest, TurnsAndStoresInOneAsOneAfterTheOther) {
  const Shape shape = {6, 2, 32, 16, 20};
  const Data data(shape);
  const std::vector<float> cos_sin = RandomFloats(20 * 12 * 2, 9);
  for (const KvType type : kTypes) {
    Attended fused(shape, type, 20), apart(shape, type, 20);
    std::vector<std::vector<float>> results;
    for (Attended* cache : {&fused, &apart}) {
      const TestDevice& device = cache->device();
      std::vector<uint32_t> positions(20);
      std::iota(positions.begin(), positions.end(), 0u);
      const KvSegment segment{cache->ids().data(), 0, 0, 20};
      DeviceBytes tables(BatchBytes(20, 20, 16));
      std::vector<uint8_t> staging(tables.size());
      const BatchRows rows = PlaceBatch(
          device.queue(), {{&segment, 1}, positions.data(), 20, 20, 16, 20, tables.data(), staging.data()});
      const DeviceArray<float> q(data.queries), k(data.keys), v(data.values), turn(cos_sin);
      RopeAndStoreKvArgs args;
      args.queries = {q.data(), rows.positions, 20, 6, 32, 24, turn.data()};
      args.keys = {k.data(), rows.positions, 20, 2, 32, 24, turn.data()};
      args.store = {cache->kv(), k.data(), v.data(), rows.segments, rows.tables, 20};
      if (cache == &fused) {
        RopeAndStoreKv(device.queue(), args);
      } else {
        Rope(device.queue(), args.queries);
        Rope(device.queue(), args.keys);
        StoreKv(device.queue(), args.store);
      }
      device.Wait();
      results.push_back(q.values());
      results.push_back(k.values());
      std::vector<uint8_t> bytes(cache->keys().size());
      cache->keys().Download(bytes.data());
      results.emplace_back(bytes.begin(), bytes.end());
    }
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(IsBitEqual(results[i], results[i + 3])) << i;
  }
}

TEST(CudaPagedAttentionTest, RefusesWhatItCannotDo) {
  for (const auto& [type, head_size] :
       {std::pair{KvType::kF32, 16}, {KvType::kF16, 24}, {KvType::kF16, 272}}) {
    const TestDevice device;
    const CudaQueue queue(device.stream(), device.queue().traits());
    PagedAttentionArgs args;
    args.kv.type = type;
    args.kv.head_size = static_cast<size_t>(head_size);
    PagedAttention(queue, args);
    EXPECT_FALSE(queue.status().ok());
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda
