// Matrix product of packed weights and quantised rows. The layout, and the one order of every sum:
// packed_layout.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/packed_formats.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/vec.h"
#include "kernels/matmul.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

// Rows that go through one pair of groups before the next: their blocks stay in the L2 cache beside the
// weights.
inline constexpr size_t kInt8RowBlock = 64;
inline constexpr size_t kLineBytes = 64;
// How far ahead of the only tile that reads them weights are asked for.
inline constexpr size_t kPrefetchBytes = 4096;

// A product, or one thread's share of it.
struct PackedProduct {
  const InputBlock* x;
  const InputBlock* refinements;
  size_t rows;
  const uint8_t* weights;
  size_t blocks;  // of a weight row
  size_t weight_rows;
  float* out;
  size_t out_stride;
  MatMulStore store;
  const uint32_t* segment_ends;  // in columns
  size_t segments;
  size_t partial_stride;
};

// The sums of one segment for kRows input rows and kCount groups of weight rows.
template <class Int8, int kRows, int kCount>
struct TileSums {
  using P = typename Int8::Part;
  static constexpr size_t kParts = kVecLanes / P::kLanes;
  P part[kParts][kCount][kRows];
};

// The dot products of one block as floats, exact.
template <class Int8, class Format, int kRows, int kCount>
MILLRACE_KERNEL_INLINE void BlockDots(const uint8_t* const* w, const InputBlock& x, size_t row,
                                      typename Int8::Part (*dots)[kRows]) {
  const uint8_t* quants[kCount];
  for (int g = 0; g < kCount; ++g) quants[g] = w[g] + row * kStepElements;
  if constexpr (!Format::kHasHalves) {
    Int8::template Dot<Format, kRows, kCount, Half::kBoth>(quants, x, dots);
  } else {
    typename Int8::Part second[kCount][kRows];
    Int8::template Dot<Format, kRows, kCount, Half::kFirst>(quants, x, dots);
    Int8::template Dot<Format, kRows, kCount, Half::kSecond>(quants, x, second);
    for (int g = 0; g < kCount; ++g) {
      const auto scale0 = Format::HalfScale(w[g], 0, row), scale1 = Format::HalfScale(w[g], 1, row);
      for (int r = 0; r < kRows; ++r) dots[g][r] = Fma(dots[g][r], scale0, Mul(second[g][r], scale1));
    }
  }
}

// Adds one block to one part of the sums; w: its records, headers: those before them.
template <class Int8, class Format, int kRows, int kCount>
MILLRACE_KERNEL_INLINE void AddBlock(const uint8_t* const* headers, const uint8_t* const* w,
                                     const InputBlock& x, size_t part, typename Int8::Part (*sums)[kRows]) {
  using P = typename Int8::Part;
  const size_t row = part * P::kLanes;
  P dots[kCount][kRows];
  BlockDots<Int8, Format, kRows, kCount>(w, x, row, dots);
  for (int g = 0; g < kCount; ++g) {
    const P scale = Format::Scale(headers[g], w[g], row);
    for (int r = 0; r < kRows; ++r) {
      sums[g][r] = Fma(Mul(dots[g][r], P::Set1(x.scale[r])), scale, sums[g][r]);
    }
    if constexpr (Format::kHasMin) {
      const P min = Format::Min(headers[g], w[g], row);
      for (int r = 0; r < kRows; ++r) sums[g][r] = Fma(min, P::Set1(x.scaled_sum[r]), sums[g][r]);
    }
  }
}

template <class V>
MILLRACE_KERNEL_INLINE void StoreSegment(const V& sum, bool accumulate, size_t lanes, float* out) {
  if (lanes >= kVecLanes) {
    (accumulate ? Add(V::Load(out), sum) : sum).Store(out);
  } else {
    (accumulate ? Add(V::LoadPartial(out, lanes), sum) : sum).StorePartial(out, lanes);
  }
}

// Weights that a tile asks for ahead of time, `step` bytes (a multiple of kLineBytes) with each block.
template <class Int8>
struct Prefetch {
  const uint8_t* from = nullptr;
  size_t step = 0;
  bool soon = false;  // for the L1 cache; else for the L2, which does not hold up the loads of the tile

  MILLRACE_KERNEL_INLINE void Step() {
    if (soon) {
      for (size_t i = 0; i < step; i += kLineBytes) __builtin_prefetch(from + i, 0, 3);
    } else {
      for (size_t i = 0; i < step; i += kLineBytes) __builtin_prefetch(from + i, 0, 2);
    }
    from += step;
  }
};

// kRows rows from `row` on (a multiple of kInputRows) against kCount groups from `group` on.
template <class Int8, class Format, int kRows, int kCount>
inline void PackedTile(const PackedProduct& args, size_t row, size_t group, Prefetch<Int8> prefetch) {
  using Sums = TileSums<Int8, kRows, kCount>;
  using V = Vec<typename Int8::Part>;
  const size_t group_bytes = args.blocks / Format::kRecords * kPackedBlockBytes<Format>;
  const uint8_t* weights = args.weights + group * group_bytes;
  const InputBlock* x = args.x + row / kInputRows * args.blocks;
  const InputBlock* refinements = args.refinements + row / kInputRows * args.blocks;
  size_t b = 0;
  for (size_t s = 0; s < args.segments; ++s) {
    const size_t end = args.segments == 1 ? args.blocks : args.segment_ends[s] / kActivationBlock;
    Sums sums;
    for (size_t p = 0; p < Sums::kParts; ++p) {
      for (int g = 0; g < kCount; ++g) {
        for (int r = 0; r < kRows; ++r) sums.part[p][g][r] = V::Part::Set1(0);
      }
    }
    for (; b < end; ++b) {
      const uint8_t* w[kCount];
      const uint8_t* headers[kCount];
      for (int g = 0; g < kCount; ++g) {
        headers[g] = weights + g * group_bytes + b / Format::kRecords * kPackedBlockBytes<Format>;
        w[g] = headers[g] + Format::kHeaderBytes + b % Format::kRecords * Format::kBytes;
      }
      prefetch.Step();
      for (size_t p = 0; p < Sums::kParts; ++p) {
        const InputBlock* inputs = x + b;
        // Else compilers keep the broadcast inputs of one part for the next, in memory.
        if constexpr (Sums::kParts > 1) asm volatile("" : "+r"(inputs));
        AddBlock<Int8, Format, kRows, kCount>(headers, w, *inputs, p, sums.part[p]);
      }
      if (__builtin_expect(x[b].refined, false)) {
        for (size_t p = 0; p < Sums::kParts; ++p) {
          AddBlock<Int8, Format, kRows, kCount>(headers, w, refinements[b], p, sums.part[p]);
        }
      }
    }
    const bool accumulate = args.store == MatMulStore::kAdd || (args.store == MatMulStore::kReplace && s > 0);
    float* out = args.out + (args.store == MatMulStore::kPartials ? s * args.partial_stride : 0) +
                 row * args.out_stride + group * kGroupRows;
    for (int g = 0; g < kCount; ++g) {
      const size_t lanes = args.weight_rows - (group + g) * kGroupRows;
      for (int r = 0; r < kRows; ++r) {
        const V sum = V::Make([&](size_t p) { return sums.part[p][g][r]; });
        StoreSegment(sum, accumulate, lanes, out + r * args.out_stride + g * kGroupRows);
      }
    }
  }
}

// Of `rows` rows from `row` on, as many as one tile takes.
template <class Int8, class Format, int kRows, int kCount>
inline void PackedTileOf(const PackedProduct& args, size_t rows, size_t row, size_t group,
                         Prefetch<Int8> prefetch) {
  if (rows >= kRows) return PackedTile<Int8, Format, kRows, kCount>(args, row, group, prefetch);
  if constexpr (kRows > 1) PackedTileOf<Int8, Format, kRows - 1, kCount>(args, rows, row, group, prefetch);
}

// All rows from `begin` to `end` against kCount groups. One tile alone asks for weights shortly before it
// reads them; of several, each asks for its part of the next kCount groups.
template <class Int8, class Format, int kCount>
inline void PackedRows(const PackedProduct& args, size_t begin, size_t end, size_t group) {
  const size_t tiles = (end - begin + kInputRows - 1) / kInputRows;
  constexpr size_t kBytes = kPackedBlockBytes<Format> / Format::kRecords;  // of 32 columns
  const size_t bytes = kCount * args.blocks * kBytes;
  const uint8_t* weights = args.weights + group * args.blocks * kBytes;
  const size_t step = (kCount * kBytes / tiles + kLineBytes - 1) / kLineBytes * kLineBytes;
  for (size_t i = 0; i < tiles; ++i) {
    const size_t row = begin + i * kInputRows;
    const size_t asked = i * args.blocks * step;
    Prefetch<Int8> prefetch{weights + kPrefetchBytes, step, true};
    if (tiles > 1) prefetch = {weights + bytes + asked, asked < bytes ? step : 0, false};
    PackedTileOf<Int8, Format, static_cast<int>(kInputRows), kCount>(args, end - row, row, group, prefetch);
  }
}

template <class Int8, WeightType type>
inline void RunPacked(const PackedProduct& args, size_t group_begin, size_t group_end) {
  using Format = PackedFormat<Int8, type>;
  for (size_t row = 0; row < args.rows; row += kInt8RowBlock) {
    const size_t row_end = args.rows - row < kInt8RowBlock ? args.rows : row + kInt8RowBlock;
    size_t group = group_begin;
    // One tile alone is bound by memory, which likes one stream better than two.
    if (args.rows > kInputRows) {
      for (; group + Int8::kGroups <= group_end; group += Int8::kGroups) {
        PackedRows<Int8, Format, Int8::kGroups>(args, row, row_end, group);
      }
    }
    for (; group < group_end; ++group) PackedRows<Int8, Format, 1>(args, row, row_end, group);
  }
}

// REQUIRES: args.weights.packed, args.x.quantized.
template <class Int8>
void PackedMatMul(const MatMulArgs& args, WorkShare share) {
  const WorkShare::Range groups = share.Of((args.weights.rows + kGroupRows - 1) / kGroupRows);
  PackedProduct product;
  product.x = static_cast<const InputBlock*>(args.x.quantized);
  product.refinements = product.x + InputBlocks(args.x.rows, args.x.columns);
  product.rows = args.x.rows;
  product.weights = args.weights.data;
  product.blocks = args.weights.columns / kActivationBlock;
  product.weight_rows = args.weights.rows;
  product.out = args.out;
  product.out_stride = args.out_stride == 0 ? args.weights.rows : args.out_stride;
  product.store = args.store;
  product.segment_ends = args.segment_ends.data();
  product.segments = args.segment_ends.empty() ? 1 : args.segment_ends.size();
  product.partial_stride = args.partial_stride;
  switch (args.weights.type) {
    case WeightType::kQ8_0:
      return RunPacked<Int8, WeightType::kQ8_0>(product, groups.begin, groups.end);
    case WeightType::kQ4_0:
      return RunPacked<Int8, WeightType::kQ4_0>(product, groups.begin, groups.end);
    case WeightType::kQ4_1:
      return RunPacked<Int8, WeightType::kQ4_1>(product, groups.begin, groups.end);
    case WeightType::kQ5_0:
      return RunPacked<Int8, WeightType::kQ5_0>(product, groups.begin, groups.end);
    case WeightType::kQ4_K:
      return RunPacked<Int8, WeightType::kQ4_K>(product, groups.begin, groups.end);
    case WeightType::kQ5_K:
      return RunPacked<Int8, WeightType::kQ5_K>(product, groups.begin, groups.end);
    case WeightType::kQ6_K:
      return RunPacked<Int8, WeightType::kQ6_K>(product, groups.begin, groups.end);
    default:
      return;
  }
}

}  // namespace millrace::kernels::cpu
