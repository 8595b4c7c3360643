#include "kernels/paged_attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/attention_plan.h"
#include "tests/kernels/attention_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels {
namespace {

using millrace::testing::IsBitEqual;
using millrace::testing::IsClose;
using millrace::testing::Tolerance;

using Shape = AttentionShape;

const std::vector<Shape> kShapes = {
    {9, 3, 64, 16, 70},  {4, 4, 2, 16, 33},    {8, 1, 18, 32, 50},   {6, 2, 80, 16, 17},
    {5, 5, 16, 16, 1},   {7, 1, 34, 48, 65},   {2, 1, 128, 64, 100}, {2, 1, 24, 32, 255},
    {3, 3, 24, 16, 256}, {6, 3, 64, 16, 257},  {1, 1, 40, 16, 530},  {4, 2, 96, 128, 290},
    {3, 1, 80, 32, 513}, {8, 1, 128, 16, 270}, {3, 1, 64, 32, 1100}, {30, 1, 16, 16, 262}};

std::string Describe(const Shape& s, KvType type) {
  return "heads " + std::to_string(s.heads) + " head_size " + std::to_string(s.head_size) + " context " +
         std::to_string(s.context) + " type " + std::to_string(static_cast<int>(type));
}

// Attention of the shape's rows over the dense arrays in double: knows nothing of pages, types and splits.
std::vector<float> Expect(const Sequence& sequence) {
  const Shape& s = sequence.shape;
  std::vector<float> out;
  for (size_t row = s.first(); row < s.context; ++row) {
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
// of itself, and values are at most 1. The context's sums add a rounding a position at most (splits and their
// merging add fewer). kI8 multiplies by two scales more.
Tolerance ToleranceOf(const Shape& s) {
  const double size = static_cast<double>(s.head_size);
  const double score_error = (size + 3) * 4 * std::sqrt(size) * 0x1p-24;
  return {2 * score_error + (static_cast<double>(s.context) + 12) * 0x1p-24, 0};
}

// How far an element of at most `most` is from what is stored.
double RoundingError(KvType type, double most) {
  if (type == KvType::kF32) return 0;
  return type == KvType::kF16 ? most * 0x1p-11 : most / 127 / 2;
}

// Of the attention over rounded keys and values, against that over the exact ones. Scores are off by at most
// e = sqrt(head_size) * 2 * (rounding of a key), their weights by a factor of exp(2 e) at most after dividing
// by the sum, and the values, at most 1, by their own rounding.
double TypeError(const Shape& s, KvType type) {
  const double e = std::sqrt(static_cast<double>(s.head_size)) * 2 * RoundingError(type, 2);
  return (std::exp(2 * e) - 1) * 2 + RoundingError(type, 1);
}

class PagedAttentionTest : public ::testing::TestWithParam<std::string> {
 protected:
  const std::unique_ptr<Backend> backend_ = MakeBackend(GetParam());
};

TEST_P(PagedAttentionTest, IsCloseToDenseAttentionForAllShapesAndTypes) {
  for (const Shape& shape : kShapes) {
    const Sequence sequence(shape);
    const std::vector<float> exact = Expect(sequence);
    for (const KvType type : kTypes) {
      Cache cache(shape, type, 4);
      cache.Store(*backend_, sequence, 0, shape.context);
      const std::vector<float> out = cache.Attend(*backend_, sequence, shape.first(), shape.rows());
      const Tolerance tolerance = ToleranceOf(shape);
      EXPECT_TRUE(IsClose(out, Expect(Stored(cache, sequence)), tolerance)) << Describe(shape, type);
      EXPECT_TRUE(IsClose(out, exact, Tolerance{tolerance.absolute + TypeError(shape, type), 0}))
          << Describe(shape, type);
    }
  }
}

TEST_P(PagedAttentionTest, StoresKeysTransposedInGroupsAndValuesInRows) {
  const Shape shape = {2, 2, 6, 32, 53};
  const Sequence sequence(shape);
  for (const KvType type : kTypes) {
    Cache cache(shape, type, 5);
    const std::vector<float> before = cache.raw();
    cache.Store(*backend_, sequence, 0, 20);
    cache.Store(*backend_, sequence, 20, 33);
    for (size_t t = 0; t < 53; ++t) {
      for (size_t h = 0; h < 2; ++h) {
        for (size_t d = 0; d < 6; ++d) {
          const size_t at = (t * 2 + h) * 6 + d;
          ASSERT_NEAR(cache.Key(t, h, d), sequence.keys[at], RoundingError(type, 2) * 1.0001);
          ASSERT_NEAR(cache.Value(t, h, d), sequence.values[at], RoundingError(type, 1) * 1.0001);
        }
      }
    }
    // All else is as it was.
    const std::vector<float> after = cache.raw();
    size_t written = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      written += std::memcmp(&before[i], &after[i], sizeof(float)) != 0 ? 1 : 0;
    }
    EXPECT_LE(written, 53u * 2 * 6 * 2 + (type == KvType::kI8 ? 53 * 2 * 2 : 0));
    if (type == KvType::kF32) {
      EXPECT_EQ(written, 53u * 2 * 6 * 2);
    }
  }
}

TEST_P(PagedAttentionTest, GivesTheSameBitsWhateverTheChunksAndBlocks) {
  for (const Shape& shape : kShapes) {
    const Sequence sequence(shape);
    for (const KvType type : kTypes) {
      Cache whole_cache(shape, type, 6);
      whole_cache.Store(*backend_, sequence, 0, shape.context);
      const std::vector<float> whole = whole_cache.Attend(*backend_, sequence, shape.first(), shape.rows());
      // The reference knows no tiles and takes its time.
      const std::vector<size_t> chunks =
          GetParam() == "reference" ? std::vector<size_t>{16} : std::vector<size_t>{1, 3, 16, 37};
      for (const size_t chunk : chunks) {
        Shape other = shape;
        other.block_tokens = chunk == 3 ? 48 : shape.block_tokens;
        Cache cache(other, type, 7);
        std::vector<float> joined;
        if (shape.first() > 0) cache.Store(*backend_, sequence, 0, shape.first());
        for (size_t first = shape.first(); first < shape.context; first += chunk) {
          const size_t rows = std::min(chunk, shape.context - first);
          cache.Store(*backend_, sequence, first, rows);
          const std::vector<float> part = cache.Attend(*backend_, sequence, first, rows);
          joined.insert(joined.end(), part.begin(), part.end());
        }
        ASSERT_TRUE(IsBitEqual(joined, whole)) << Describe(shape, type) << " chunk " << chunk;
      }
    }
  }
}

// Four sequences in one call, some with one row, some with many.
const Shape kBatchShape = {6, 2, 24, 32, 600};
const std::vector<Rows> kBatch = {{2, 511, 1}, {0, 240, 33}, {3, 0, 1}, {1, 599, 1}, {0, 0, 5}};

std::vector<Sequence> BatchSequences() {
  return {Sequence(kBatchShape, 11), Sequence(kBatchShape, 12), Sequence(kBatchShape, 13),
          Sequence(kBatchShape, 14)};
}

// Each row as if it were alone.
std::vector<float> RowByRow(const Runner& runner, KvType type, const std::vector<Sequence>& sequences,
                            const std::vector<Rows>& batch) {
  Cache cache(kBatchShape, type, 15, sequences.size());
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (size_t t = 0; t < kBatchShape.context; t += 75) cache.Store(runner, sequences, {{s, t, 75}});
  }
  std::vector<float> out;
  for (const Rows& rows : batch) {
    for (size_t i = 0; i < rows.count; ++i) {
      const std::vector<float> one = cache.Attend(runner, sequences, {{rows.sequence, rows.first + i, 1}});
      out.insert(out.end(), one.begin(), one.end());
    }
  }
  return out;
}

TEST_P(PagedAttentionTest, OneCallForManySequencesGivesTheBitsOfEachAlone) {
  const std::vector<Sequence> sequences = BatchSequences();
  for (const KvType type : kTypes) {
    Cache cache(kBatchShape, type, 16, sequences.size());
    const Runner runner = RunnerOf(*backend_);
    cache.Store(runner, sequences, {{0, 0, 600}, {1, 0, 600}, {2, 0, 512}, {3, 0, 1}});
    EXPECT_TRUE(
        IsBitEqual(cache.Attend(runner, sequences, kBatch), RowByRow(runner, type, sequences, kBatch)))
        << static_cast<int>(type);
  }
}

TEST_P(PagedAttentionTest, WorksFarBeyondEightThousandPositions) {
  const Shape shape = {2, 1, 16, 16, 9001};
  const Sequence sequence(shape);
  Cache cache(shape, KvType::kF32, 8);
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

// In the first split, in the middle and in the last one: the largest score so far rises, or does not.
TEST_P(PagedAttentionTest, OneLoudKeyTakesAllTheWeight) {
  const Shape shape = {1, 1, 32, 16, 600};
  for (const size_t loud : {7, 300, 590}) {
    Sequence sequence(shape);
    for (size_t d = 0; d < 32; ++d) {
      sequence.keys[loud * 32 + d] = 1000.0f;
      sequence.queries[599 * 32 + d] = 1000.0f;
    }
    for (const KvType type : kTypes) {
      Cache cache(shape, type, 9);
      cache.Store(*backend_, sequence, 0, 600);
      std::vector<float> value;
      for (size_t d = 0; d < 32; ++d) value.push_back(cache.Value(loud, 0, d));
      EXPECT_TRUE(IsClose(cache.Attend(*backend_, sequence, 599, 1), value, Tolerance{0, 0x1p-23})) << loud;
    }
  }
}

// A row with something that is no number spoils the rows that attend to it and no other, in every type.
TEST_P(PagedAttentionTest, WhatIsNotFiniteShowsWhereItIsAttendedTo) {
  const Shape shape = {2, 1, 18, 16, 300};
  for (const float strange : {std::nanf(""), INFINITY, -INFINITY}) {
    for (const bool in_key : {true, false}) {
      Sequence sequence(shape);
      (in_key ? sequence.keys : sequence.values)[290 * 18 + 17] = strange;
      for (const KvType type : kTypes) {
        Cache cache(shape, type, 10);
        cache.Store(*backend_, sequence, 0, 300);
        const std::vector<float> out = cache.Attend(*backend_, sequence, 285, 15);
        bool spoilt = false;
        for (size_t i = 0; i < out.size(); ++i) {
          if (i / 36 < 5) {
            EXPECT_TRUE(std::isfinite(out[i])) << i;
          } else {
            spoilt = spoilt || !std::isfinite(out[i]);
          }
        }
        // A score of minus infinity is no more than a key that nobody looks at.
        if (!in_key || std::isnan(strange)) {
          EXPECT_TRUE(spoilt);
        }
      }
    }
  }
}

// What a type cannot hold exactly: ties, subnormal halves, beyond the largest half, and rows of zeros.
TEST_P(PagedAttentionTest, RoundsToNearestEvenAtTheEdgesOfATypesRange) {
  const Shape shape = {1, 1, 16, 16, 3};
  Sequence sequence(shape);
  const std::vector<float> edges = {
      1.0f + 0x1p-11f,  1.0f + 0x3p-11f, -0x1p-24f, 0x1p-25f, 0x3p-25f, 0x1.8p-15f,   65504.0f, 65519.0f,
      -2.0f - 0x1p-10f, 0x1.ffep-15f,    0x1p-14f,  0.0f,     -0.0f,    0x1.fffp-15f, 3.14159f, -1e-9f};
  std::copy(edges.begin(), edges.end(), sequence.keys.begin());
  std::fill_n(sequence.keys.begin() + 16, 16, 0.0f);
  std::fill_n(sequence.keys.begin() + 32, 16, 1e-37f);
  Cache half(shape, KvType::kF16, 1);
  half.Store(*backend_, sequence, 0, 3);
  const std::vector<float> rounded = {1.0f,  1.0f + 0x1p-9f, -0x1p-24f, 0.0f,     0x1p-23f, 0x1.8p-15f,
                                      65504, 65504,          -2.0f,     0x1p-14f, 0x1p-14f, 0.0f,
                                      -0.0f, 0x1p-14f,       3.140625f, -0.0f};
  for (size_t d = 0; d < 16; ++d) EXPECT_EQ(half.Key(0, 0, d), rounded[d]) << d;
  Cache eight(shape, KvType::kI8, 2);
  eight.Store(*backend_, sequence, 0, 3);
  EXPECT_EQ(eight.Key(0, 0, 7), 65519.0f / 127.0f * 127.0f);
  EXPECT_EQ(eight.Key(0, 0, 14), 0.0f);
  for (size_t d = 0; d < 16; ++d) {
    EXPECT_EQ(eight.Key(1, 0, d), 0.0f) << d;
    EXPECT_EQ(eight.Key(2, 0, d), 0.0f) << "too small for a scale";
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, PagedAttentionTest, ::testing::ValuesIn(AllBackends()), ParamName);

class CpuAttentionTest : public PagedAttentionTest {};

TEST_P(CpuAttentionTest, GivesTheBitsOfThePortableBackend) {
  const auto portable = MakeBackend("portable");
  for (const Shape& shape : kShapes) {
    const Sequence sequence(shape);
    for (const KvType type : kTypes) {
      Cache cache(shape, type, 10), other(shape, type, 11);
      cache.Store(*backend_, sequence, 0, shape.context);
      other.Store(*portable, sequence, 0, shape.context);
      ASSERT_TRUE(IsBitEqual(cache.Attend(*backend_, sequence, shape.first(), shape.rows()),
                             other.Attend(*portable, sequence, shape.first(), shape.rows())))
          << Describe(shape, type);
    }
  }
}

TEST_P(CpuAttentionTest, StoresTheBytesOfTheReference) {
  const auto reference = MakeBackend("reference");
  for (const Shape& shape : kShapes) {
    Sequence sequence(shape);
    for (size_t i = 0; i < sequence.keys.size(); i += 5) sequence.keys[i] *= 1e-6f;
    for (const KvType type : kTypes) {
      Cache cache(shape, type, 12), other(shape, type, 12);
      cache.Store(*backend_, sequence, 0, shape.context);
      other.Store(*reference, sequence, 0, shape.context);
      const std::vector<float> bytes = cache.raw(), expected = other.raw();
      ASSERT_EQ(std::memcmp(bytes.data(), expected.data(), bytes.size() * sizeof(float)), 0)
          << Describe(shape, type);
    }
  }
}

TEST_P(CpuAttentionTest, GivesTheSameBitsHoweverWorkIsShared) {
  const std::vector<Sequence> sequences = BatchSequences();
  for (const KvType type : kTypes) {
    const std::vector<float> expected = RowByRow(RunnerOf(*backend_), type, sequences, kBatch);
    for (const size_t shares : {1, 2, 3, 7}) {
      for (const bool by_splits : {false, true}) {
        const Runner runner = Shared(GetParam(), shares, by_splits);
        Cache cache(kBatchShape, type, 17, sequences.size());
        cache.Store(runner, sequences, {{0, 0, 600}, {1, 0, 600}, {2, 0, 600}, {3, 0, 600}});
        EXPECT_TRUE(IsBitEqual(cache.Attend(runner, sequences, kBatch), expected))
            << shares << " shares" << (by_splits ? ", by splits" : "");
      }
    }
  }
}

// More splits than wait in one round, so that an item goes on in the next.
TEST_P(CpuAttentionTest, GivesTheSameBitsInSeveralRounds) {
  const Shape shape = {24, 1, 16, 16, 5000};
  const std::vector<Sequence> sequences = {Sequence(shape)};
  Cache cache(shape, KvType::kF16, 18);
  const Runner alone = RunnerOf(*backend_);
  cache.Store(alone, sequences, {{0, 0, 5000}});
  const std::vector<Rows> batch = {{0, 4998, 2}, {0, 200, 1}, {0, 4200, 1}};
  const std::vector<float> expected = cache.Attend(alone, sequences, batch);
  size_t rounds = 0;
  for (const size_t shares : {1, 2, 3}) {
    Runner runner = Shared(GetParam(), shares, true);
    EXPECT_TRUE(IsBitEqual(cache.Attend(runner, sequences, batch), expected)) << shares << " shares";
    const KvSegment segment{nullptr, 4998, 0, 2};
    PagedAttentionArgs args;
    args.kv = cache.kv();
    args.heads = shape.heads;
    args.segments = {&segment, 1};
    for (cpu::AttentionRound round = cpu::NextRound({&args, shares}); round.begin < round.end;
         round = cpu::NextRound(round)) {
      ++rounds;
    }
  }
  EXPECT_GT(rounds, 3u);
}

INSTANTIATE_TEST_SUITE_P(Backends, CpuAttentionTest, ::testing::ValuesIn(CpuBackends()), ParamName);

}  // namespace
}  // namespace millrace::kernels
