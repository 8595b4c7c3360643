#include "kernels/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels {
namespace {

using millrace::testing::IsBitEqual;
using millrace::testing::IsClose;
using millrace::testing::Tolerance;

struct Shape {
  size_t heads, kv_heads, head_size, block_tokens, context;
};
const std::vector<Shape> kShapes = {{9, 3, 64, 16, 70}, {4, 4, 2, 16, 33},    {8, 1, 18, 32, 50},
                                    {6, 2, 80, 16, 17}, {2, 1, 128, 64, 100}, {5, 5, 16, 16, 1},
                                    {7, 1, 34, 48, 65}, {1, 1, 40, 16, 530},  {4, 2, 96, 128, 290}};

// One sequence: its tokens' queries, keys and values, dense.
struct Sequence {
  explicit Sequence(const Shape& s)
      : shape(s),
        queries(RandomFloats(s.context * s.heads * s.head_size, 1, 2.0f)),
        keys(RandomFloats(s.context * s.kv_heads * s.head_size, 2, 2.0f)),
        values(RandomFloats(s.context * s.kv_heads * s.head_size, 3)) {}
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.head_size)); }

  Shape shape;
  std::vector<float> queries, keys, values;
};

// A cache whose unwritten part is NaN, with the sequence's blocks in disorder among others.
class Cache {
 public:
  Cache(const Shape& s, uint32_t seed)
      : blocks_((s.context + s.block_tokens - 1) / s.block_tokens + 3),
        keys_(blocks_ * s.kv_heads * s.block_tokens * s.head_size),
        values_(blocks_ * s.kv_heads * s.block_tokens * s.head_size),
        ids_(blocks_) {
    std::iota(ids_.begin(), ids_.end(), 0u);
    std::shuffle(ids_.begin(), ids_.end(), std::mt19937(seed));
    ids_.resize(blocks_ - 3);
    ids_.shrink_to_fit();
    kv_ = {keys_.data(), values_.data(), s.block_tokens, s.kv_heads, s.head_size};
  }

  void Store(const Backend& backend, const Sequence& sequence, size_t first, size_t rows) {
    const size_t width = kv_.kv_heads * kv_.head_size;
    backend.StoreKv({kv_, sequence.keys.data() + first * width, sequence.values.data() + first * width,
                     ids_.data(), static_cast<uint32_t>(first), rows});
    EXPECT_TRUE(keys_.Intact() && values_.Intact());
  }

  std::vector<float> Attend(const Backend& backend, const Sequence& sequence, size_t first, size_t rows) {
    const Shape& s = sequence.shape;
    const size_t width = s.heads * s.head_size;
    const auto begin = sequence.queries.begin() + static_cast<std::ptrdiff_t>(first * width);
    GuardedFloats queries(std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(rows * width)));
    GuardedFloats out(rows * width);
    GuardedFloats scratch(backend.AttentionScratchFloats(first + rows, s.heads, s.kv_heads),
                          GuardedFloats::Alignment::kCacheLine);
    backend.PagedAttention({kv_, queries.data(), out.data(), ids_.data(), static_cast<uint32_t>(first), rows,
                            s.heads, sequence.scale(), scratch.data()});
    EXPECT_TRUE(queries.Intact() && out.Intact() && scratch.Intact());
    EXPECT_TRUE(keys_.Intact() && values_.Intact());
    return out.values();
  }

  const std::vector<uint32_t>& ids() const { return ids_; }
  std::vector<float> keys() const { return keys_.values(); }
  std::vector<float> values() const { return values_.values(); }

 private:
  size_t blocks_;
  GuardedFloats keys_, values_;
  std::vector<uint32_t> ids_;
  PagedKv kv_;
};

// Attention over the dense arrays in double: knows nothing of pages.
std::vector<float> Expect(const Sequence& sequence) {
  const Shape& s = sequence.shape;
  std::vector<float> out;
  for (size_t row = 0; row < s.context; ++row) {
    for (size_t head = 0; head < s.heads; ++head) {
      const float* query = &sequence.queries[(row * s.heads + head) * s.head_size];
      const size_t kv_head = head / (s.heads / s.kv_heads);
      const auto at = [&](size_t t, size_t d) { return (t * s.kv_heads + kv_head) * s.head_size + d; };
      std::vector<double> weights(row + 1);
      for (size_t t = 0; t <= row; ++t) {
        for (size_t d = 0; d < s.head_size; ++d) {
          weights[t] += static_cast<double>(query[d]) * sequence.keys[at(t, d)] * sequence.scale();
        }
      }
      const double max = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& w : weights) sum += w = std::exp(w - max);
      for (size_t d = 0; d < s.head_size; ++d) {
        double value = 0;
        for (size_t t = 0; t <= row; ++t) value += weights[t] * sequence.values[at(t, d)];
        out.push_back(static_cast<float>(value / sum));
      }
    }
  }
  return out;
}

// Scores are sums of head_size products of at most 4, scaled; an error e in a score moves a weight by about e
// of itself, and values are at most 1. The context's sums add a rounding a position at most.
Tolerance ToleranceOf(const Shape& s) {
  const double size = static_cast<double>(s.head_size);
  const double score_error = (size + 2) * 4 * std::sqrt(size) * 0x1p-24;
  return {2 * score_error + (static_cast<double>(s.context) + 8) * 0x1p-24, 0};
}

class PagedAttentionTest : public ::testing::TestWithParam<std::string> {
 protected:
  const std::unique_ptr<Backend> backend_ = MakeBackend(GetParam());
};

TEST_P(PagedAttentionTest, IsCloseToDenseAttentionForAllShapes) {
  for (const Shape& shape : kShapes) {
    const Sequence sequence(shape);
    Cache cache(shape, 4);
    cache.Store(*backend_, sequence, 0, shape.context);
    EXPECT_TRUE(
        IsClose(cache.Attend(*backend_, sequence, 0, shape.context), Expect(sequence), ToleranceOf(shape)))
        << "heads " << shape.heads << " head_size " << shape.head_size << " context " << shape.context;
  }
}

TEST_P(PagedAttentionTest, StoresKeysTransposedInGroupsAndValuesInRows) {
  const Shape shape = {2, 2, 6, 32, 53};
  const Sequence sequence(shape);
  Cache cache(shape, 5);
  cache.Store(*backend_, sequence, 0, 20);
  cache.Store(*backend_, sequence, 20, 33);
  const std::vector<float> keys = cache.keys(), values = cache.values();
  size_t written = 0;
  for (size_t t = 0; t < 53; ++t) {
    for (size_t h = 0; h < 2; ++h) {
      for (size_t d = 0; d < 6; ++d, ++written) {
        const size_t base = (cache.ids()[t / 32] * 2 + h) * 32 * 6;
        const size_t slot = t % 32;
        EXPECT_EQ(keys[base + slot / 16 * 96 + d * 16 + slot % 16], sequence.keys[(t * 2 + h) * 6 + d]);
        EXPECT_EQ(values[base + slot * 6 + d], sequence.values[(t * 2 + h) * 6 + d]);
      }
    }
  }
  const auto is_nan = [](float v) { return std::isnan(v); };
  EXPECT_EQ(keys.size() - static_cast<size_t>(std::count_if(keys.begin(), keys.end(), is_nan)), written);
  EXPECT_EQ(values.size() - static_cast<size_t>(std::count_if(values.begin(), values.end(), is_nan)),
            written);
}

TEST_P(PagedAttentionTest, GivesTheSameBitsWhateverTheChunksAndBlocks) {
  for (const Shape& shape : kShapes) {
    const Sequence sequence(shape);
    Cache whole_cache(shape, 6);
    whole_cache.Store(*backend_, sequence, 0, shape.context);
    const std::vector<float> whole = whole_cache.Attend(*backend_, sequence, 0, shape.context);
    for (const size_t chunk : {1, 3, 16, 37}) {
      Shape other = shape;
      other.block_tokens = chunk == 3 ? 48 : shape.block_tokens;
      Cache cache(other, 7);
      std::vector<float> joined;
      for (size_t first = 0; first < shape.context; first += chunk) {
        const size_t rows = std::min(chunk, shape.context - first);
        cache.Store(*backend_, sequence, first, rows);
        const std::vector<float> part = cache.Attend(*backend_, sequence, first, rows);
        joined.insert(joined.end(), part.begin(), part.end());
      }
      ASSERT_TRUE(IsBitEqual(joined, whole)) << "head_size " << shape.head_size << " chunk " << chunk;
    }
  }
}

TEST_P(PagedAttentionTest, WorksFarBeyondEightThousandPositions) {
  const Shape shape = {2, 1, 16, 16, 9001};
  const Sequence sequence(shape);
  Cache cache(shape, 8);
  cache.Store(*backend_, sequence, 0, shape.context);
  const std::vector<float> last = cache.Attend(*backend_, sequence, 8999, 2);
  Sequence uniform = sequence;
  std::fill(uniform.queries.begin(), uniform.queries.end(), 0.0f);
  const std::vector<float> mean = cache.Attend(*backend_, uniform, 9000, 1);
  for (size_t d = 0; d < 16; ++d) {
    double expected = 0;
    for (size_t t = 0; t < 9001; ++t) expected += sequence.values[t * 16 + d] / 9001.0;
    EXPECT_NEAR(mean[d], expected, ToleranceOf(shape).absolute);
  }
  EXPECT_TRUE(IsBitEqual(cache.Attend(*backend_, sequence, 9000, 1),
                         std::vector<float>(last.begin() + 32, last.end())));
}

TEST_P(PagedAttentionTest, OneLoudKeyTakesAllTheWeight) {
  const Shape shape = {1, 1, 32, 16, 40};
  Sequence sequence(shape);
  for (size_t d = 0; d < 32; ++d) {
    sequence.keys[7 * 32 + d] = 1000.0f;
    sequence.queries[39 * 32 + d] = 1000.0f;
  }
  Cache cache(shape, 9);
  cache.Store(*backend_, sequence, 0, 40);
  const std::vector<float> value(sequence.values.begin() + 7 * 32, sequence.values.begin() + 8 * 32);
  EXPECT_TRUE(IsClose(cache.Attend(*backend_, sequence, 39, 1), value, Tolerance{}));
}

INSTANTIATE_TEST_SUITE_P(Backends, PagedAttentionTest, ::testing::ValuesIn(AllBackends()), ParamName);

class PagedAttentionAcrossIsasTest : public PagedAttentionTest {};

TEST_P(PagedAttentionAcrossIsasTest, GivesTheBitsOfThePortableBackend) {
  const auto portable = MakeBackend("portable");
  for (const Shape& shape : kShapes) {
    const Sequence sequence(shape);
    Cache cache(shape, 10), other(shape, 11);
    cache.Store(*backend_, sequence, 0, shape.context);
    other.Store(*portable, sequence, 0, shape.context);
    ASSERT_TRUE(IsBitEqual(cache.Attend(*backend_, sequence, 0, shape.context),
                           other.Attend(*portable, sequence, 0, shape.context)))
        << "heads " << shape.heads << " head_size " << shape.head_size;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, PagedAttentionAcrossIsasTest, ::testing::ValuesIn(CpuBackends()),
                         ParamName);

}  // namespace
}  // namespace millrace::kernels
