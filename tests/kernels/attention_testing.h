// What the tests of attention share: sequences, a guarded cache that holds them, and ways to run the ops.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/op_table.h"
#include "kernels/paged_attention.h"
#include "tests/kernels/kernel_testing.h"

namespace millrace::kernels {

inline const std::vector<KvType> kTypes = {KvType::kF32, KvType::kF16, KvType::kI8};

struct AttentionShape {
  size_t heads, kv_heads, head_size, block_tokens, context;
  // Of long contexts only the last rows are worked out.
  size_t first() const { return context > 150 ? context - 19 : 0; }
  size_t rows() const { return context - first(); }
};

// One sequence: its tokens' queries, keys and values, dense.
struct Sequence {
  explicit Sequence(const AttentionShape& s, uint32_t seed = 1)
      : shape(s),
        queries(RandomFloats(s.context * s.heads * s.head_size, seed, 2.0f)),
        keys(RandomFloats(s.context * s.kv_heads * s.head_size, seed + 100, 2.0f)),
        values(RandomFloats(s.context * s.kv_heads * s.head_size, seed + 200)) {}
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.head_size)); }

  AttentionShape shape;
  std::vector<float> queries, keys, values;
};

// Consecutive rows of one of several sequences.
struct Rows {
  size_t sequence, first, count;
};

// What runs the ops: a backend, or the op table of an instruction set in a given number of shares.
struct Runner {
  std::function<void(const StoreKvArgs&)> store;
  std::function<void(const PagedAttentionArgs&)> attend;
  std::function<size_t(size_t head_size)> scratch_floats;
};

inline Runner RunnerOf(const Backend& backend) {
  return {[&](const StoreKvArgs& args) { backend.StoreKv(args); },
          [&](const PagedAttentionArgs& args) { backend.PagedAttention(args); },
          [&](size_t head_size) { return backend.AttentionScratchFloats(head_size); }};
}

inline const cpu::OpTable& TableOf(const std::string& isa) {
#if defined(__x86_64__)
  if (isa.rfind("avx512", 0) == 0) return cpu::kAvx512Ops;
  if (isa == "avx2") return cpu::kAvx2Ops;
#endif
  return cpu::kPortableOps;
}

// The last share first: no share may rely on another.
template <class Args>
inline void RunShares(void (*op)(const Args&, WorkShare), const Args& args, size_t shares) {
  for (size_t i = shares; i-- > 0;) op(args, {i, shares});
}

inline Runner Shared(const std::string& isa, size_t shares, bool by_splits) {
  const cpu::OpTable& ops = TableOf(isa);
  Runner runner;
  runner.store = [&ops, shares](const StoreKvArgs& args) { RunShares(ops.store_kv, args, shares); };
  runner.scratch_floats = [shares](size_t head_size) {
    // One share has no splits that wait, so that what two have is what it takes.
    return cpu::AttentionScratchSize(head_size, std::max<size_t>(shares, 2));
  };
  runner.attend = [&ops, shares](const PagedAttentionArgs& args) {
    RunShares(ops.paged_attention, args, shares);
  };
  if (by_splits) {
    runner.attend = [&ops, shares](const PagedAttentionArgs& args) {
      for (cpu::AttentionRound round = cpu::NextRound({&args, shares}); round.begin < round.end;
           round = cpu::NextRound(round)) {
        RunShares(ops.attention_splits, round, shares);
        RunShares(ops.attention_merge, round, shares);
      }
    };
  }
  return runner;
}

// A cache whose unwritten part is poison, with the blocks of its sequences in disorder among others.
class Cache {
 public:
  Cache(const AttentionShape& s, KvType type, uint32_t seed, size_t sequences = 1)
      : blocks_of_each_((s.context + s.block_tokens - 1) / s.block_tokens),
        blocks_(blocks_of_each_ * sequences + 3),
        keys_(blocks_ * s.kv_heads * s.block_tokens * s.head_size * KvElementBytes(type) / sizeof(float)),
        values_(blocks_ * s.kv_heads * s.block_tokens * s.head_size * KvElementBytes(type) / sizeof(float)),
        key_scales_(type == KvType::kI8 ? blocks_ * s.kv_heads * s.block_tokens : 0),
        value_scales_(type == KvType::kI8 ? blocks_ * s.kv_heads * s.block_tokens : 0),
        ids_(blocks_) {
    std::iota(ids_.begin(), ids_.end(), 0u);
    std::shuffle(ids_.begin(), ids_.end(), std::mt19937(seed));
    ids_.resize(blocks_ - 3);
    ids_.shrink_to_fit();
    kv_.key_blocks = reinterpret_cast<uint8_t*>(keys_.data());
    kv_.value_blocks = reinterpret_cast<uint8_t*>(values_.data());
    kv_.key_scales = type == KvType::kI8 ? key_scales_.data() : nullptr;
    kv_.value_scales = type == KvType::kI8 ? value_scales_.data() : nullptr;
    kv_.type = type;
    kv_.block_tokens = s.block_tokens;
    kv_.kv_heads = s.kv_heads;
    kv_.head_size = s.head_size;
  }

  void Store(const Runner& runner, const std::vector<Sequence>& sequences, const std::vector<Rows>& batch) {
    const size_t width = kv_.kv_heads * kv_.head_size;
    GuardedFloats keys(Gather(sequences, batch, &Sequence::keys, width));
    GuardedFloats values(Gather(sequences, batch, &Sequence::values, width));
    const std::vector<KvSegment> segments = SegmentsOf(batch);
    runner.store({kv_, keys.data(), values.data(), segments});
    EXPECT_TRUE(keys.Intact() && values.Intact() && Intact());
  }

  std::vector<float> Attend(const Runner& runner, const std::vector<Sequence>& sequences,
                            const std::vector<Rows>& batch) {
    const AttentionShape& s = sequences[0].shape;
    GuardedFloats queries(Gather(sequences, batch, &Sequence::queries, s.heads * s.head_size));
    GuardedFloats out(queries.values().size());
    GuardedFloats scratch(runner.scratch_floats(s.head_size), GuardedFloats::Alignment::kCacheLine);
    const std::vector<KvSegment> segments = SegmentsOf(batch);
    runner.attend({kv_, queries.data(), out.data(), segments, s.heads, sequences[0].scale(), scratch.data()});
    EXPECT_TRUE(queries.Intact() && out.Intact() && scratch.Intact() && Intact());
    return out.values();
  }

  // One sequence.
  void Store(const Backend& backend, const Sequence& sequence, size_t first, size_t rows) {
    Store(RunnerOf(backend), {sequence}, {{0, first, rows}});
  }
  std::vector<float> Attend(const Backend& backend, const Sequence& sequence, size_t first, size_t rows) {
    return Attend(RunnerOf(backend), {sequence}, {{0, first, rows}});
  }

  // What is stored at a position, with its scale.
  float Key(size_t t, size_t head, size_t d) const {
    const size_t row = RowOf(t, head), slot = t % kv_.block_tokens;
    const size_t group = row + slot / 16 * 16;
    return Element(kv_.key_blocks, kv_.key_scales, (group * kv_.head_size + d * 16 + slot % 16), row + slot);
  }
  float Value(size_t t, size_t head, size_t d) const {
    const size_t row = RowOf(t, head) + t % kv_.block_tokens;
    return Element(kv_.value_blocks, kv_.value_scales, row * kv_.head_size + d, row);
  }
  std::vector<float> raw() const {
    std::vector<float> all;
    for (const GuardedFloats* part : {&keys_, &values_, &key_scales_, &value_scales_}) {
      const std::vector<float> values = part->values();
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }
  const PagedKv& kv() const { return kv_; }

 private:
  bool Intact() const {
    return keys_.Intact() && values_.Intact() && key_scales_.Intact() && value_scales_.Intact();
  }
  size_t RowOf(size_t t, size_t head) const {
    return (ids_[t / kv_.block_tokens] * kv_.kv_heads + head) * kv_.block_tokens;
  }
  float Element(const uint8_t* elements, const float* scales, size_t at, size_t row) const {
    if (kv_.type == KvType::kI8) return static_cast<float>(static_cast<int8_t>(elements[at])) * scales[row];
    if (kv_.type == KvType::kF32) return reinterpret_cast<const float*>(elements)[at];
    const unsigned half = elements[2 * at] | elements[2 * at + 1] << 8;
    const int exponent = static_cast<int>(half >> 10 & 31);
    const float digits = static_cast<float>((half & 1023) + (exponent == 0 ? 0 : 1024));
    if (exponent == 31) return std::nanf("");
    return (half >> 15 != 0 ? -1.0f : 1.0f) * std::ldexp(digits, std::max(exponent, 1) - 25);
  }
  static std::vector<float> Gather(const std::vector<Sequence>& sequences, const std::vector<Rows>& batch,
                                   std::vector<float> Sequence::*of, size_t width) {
    std::vector<float> all;
    for (const Rows& rows : batch) {
      const auto begin =
          (sequences[rows.sequence].*of).begin() + static_cast<std::ptrdiff_t>(rows.first * width);
      all.insert(all.end(), begin, begin + static_cast<std::ptrdiff_t>(rows.count * width));
    }
    return all;
  }
  std::vector<KvSegment> SegmentsOf(const std::vector<Rows>& batch) const {
    std::vector<KvSegment> segments;
    size_t row = 0;
    for (const Rows& rows : batch) {
      segments.push_back({ids_.data() + rows.sequence * blocks_of_each_, static_cast<uint32_t>(rows.first),
                          row, rows.count});
      row += rows.count;
    }
    return segments;
  }

  size_t blocks_of_each_;
  size_t blocks_;
  GuardedFloats keys_, values_, key_scales_, value_scales_;
  std::vector<uint32_t> ids_;
  PagedKv kv_;
};

// The sequence with its keys and values as the cache holds them.
inline Sequence Stored(const Cache& cache, Sequence sequence) {
  const AttentionShape& s = sequence.shape;
  for (size_t t = 0; t < s.context; ++t) {
    for (size_t h = 0; h < s.kv_heads; ++h) {
      for (size_t d = 0; d < s.head_size; ++d) {
        sequence.keys[(t * s.kv_heads + h) * s.head_size + d] = cache.Key(t, h, d);
        sequence.values[(t * s.kv_heads + h) * s.head_size + d] = cache.Value(t, h, d);
      }
    }
  }
  return sequence;
}

}  // namespace millrace::kernels
