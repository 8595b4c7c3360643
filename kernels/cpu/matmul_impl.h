// Matrix product in dot-product form. Canonical order of one result: lane l adds x[16 j + l] * w[16 j + l] by
// fma over rising j, then Vec::ReduceAdd. Both paths below keep it, so a result has the same bits whichever
// path and tile computed it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/tile_sizes.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/weight_reader.h"
#include "kernels/matmul.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

// Rows of x that share one dequantised panel: enough to make dequantising cheap, few enough to stay in the L2
// cache.
inline constexpr size_t kRowBlock = 64;
inline constexpr size_t kCacheLine = 64;
// Columns of x and of the panel that a tile goes through for one register part before it does so for the
// next.
inline constexpr size_t kPartDepth = 384;

// A tile's rows of x, [rows, k], and the dequantised weight rows, [kPanelColumns, panel_stride] with zeros
// after column k.
struct PanelOperands {
  const float* x;
  size_t x_stride;
  size_t k;
  const float* panel;
  size_t panel_stride;
};

// One segment of a product, or one thread's share of it.
struct Product {
  const float* x;
  size_t x_stride;
  size_t rows;
  WeightMatrix weights;  // of the segment's columns
  float* out;
  size_t out_stride;
  bool accumulate;
  size_t n_begin, n_end;  // weight rows to do
  float* scratch;
};

template <class V>
MILLRACE_KERNEL_INLINE size_t PanelStride(size_t k) {
  return (k + kVecLanes - 1) / kVecLanes * kVecLanes;
}

template <class V>
MILLRACE_KERNEL_INLINE void StoreSums(const V* sums, size_t count, bool accumulate, float* out) {
  float reduced[kPanelColumns];
  V::ReduceAdd4(sums, reduced);
  for (size_t c = 0; c < count; ++c) out[c] = accumulate ? out[c] + reduced[c] : reduced[c];
}

// kRows rows of x against the weight rows n0 .. n0 + 3, dequantising in registers: best for few rows of x.
template <class V, WeightType type, int kRows>
inline void DirectTile(const Product& args, size_t row0, size_t n0) {
  using Reader = WeightReader<V, type>;
  constexpr size_t kStep = Reader::kVectors * kVecLanes;
  constexpr size_t kStepBytes = Reader::kBytes / Reader::kSteps;
  const WeightMatrix& weights = args.weights;
  const size_t k = weights.columns;
  const size_t count = weights.rows - n0 < kPanelColumns ? weights.rows - n0 : kPanelColumns;
  const size_t x_stride = args.x_stride;
  const float* x = args.x + row0 * x_stride;
  const uint8_t* w[kPanelColumns];
  for (size_t c = 0; c < kPanelColumns; ++c) {
    w[c] = weights.data + (n0 + (c < count ? c : count - 1)) * weights.row_bytes;
  }
  V acc[kRows][kPanelColumns];
  for (int r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kPanelColumns; ++c) acc[r][c] = V::Set1(0);
  }
  const size_t steps = k / kStep;
  // The next tile's rows follow this one's. Hardware does not see that through four interleaved streams of
  // short rows.
  const uint8_t* next = weights.data + (n0 + kPanelColumns) * weights.row_bytes;
  for (size_t s = 0; s < steps; ++s) {
    for (size_t i = 0; i < kPanelColumns * kStepBytes; i += kCacheLine) {
      __builtin_prefetch(next + s * kPanelColumns * kStepBytes + i);
    }
    for (size_t c = 0; c < kPanelColumns; ++c) {
      V values[Reader::kVectors];
      Reader::Load(w[c] + s / Reader::kSteps * Reader::kBytes, s % Reader::kSteps, values);
      for (size_t i = 0; i < Reader::kVectors; ++i) {
        for (int r = 0; r < kRows; ++r) {
          acc[r][c] = Fma(V::Load(x + r * x_stride + s * kStep + i * kVecLanes), values[i], acc[r][c]);
        }
      }
    }
  }
  if constexpr (Reader::kVectors == 1) {
    if (const size_t tail = k - steps * kStep; tail != 0) {
      for (size_t c = 0; c < kPanelColumns; ++c) {
        const V value = LoadWeightTail<V, type>(w[c] + steps * Reader::kBytes, tail);
        for (int r = 0; r < kRows; ++r) {
          acc[r][c] = Fma(V::LoadPartial(x + r * x_stride + steps * kStep, tail), value, acc[r][c]);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    StoreSums(acc[r], count, args.accumulate, args.out + (row0 + r) * args.out_stride + n0);
  }
}

// Adds columns [begin, end) of kRows rows of x times a panel of four weight rows to one part of the sums; end
// - begin is a multiple of kVecLanes. One part at a time, so that the accumulators of a tile fit the
// registers where a Vec takes several.
template <class V, int kRows>
MILLRACE_KERNEL_INLINE void AddPanelPart(const PanelOperands& operands, size_t begin, size_t end, size_t part,
                                         V (*sums)[kPanelColumns]) {
  using P = typename V::Part;
  P acc[kRows][kPanelColumns];
  for (int r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kPanelColumns; ++c) acc[r][c] = sums[r][c].part[part];
  }
  const float* x = operands.x + part * P::kLanes;
  const float* w = operands.panel + part * P::kLanes;
  for (size_t i = begin; i < end; i += kVecLanes) {
    P xv[kRows];
    for (int r = 0; r < kRows; ++r) xv[r] = P::Load(x + r * operands.x_stride + i);
    for (size_t c = 0; c < kPanelColumns; ++c) {
      const P wv = P::Load(w + c * operands.panel_stride + i);
      for (int r = 0; r < kRows; ++r) acc[r][c] = Fma(xv[r], wv, acc[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kPanelColumns; ++c) sums[r][c].part[part] = acc[r][c];
  }
}

template <class V, int kRows>
MILLRACE_KERNEL_INLINE void PanelTile(const PanelOperands& operands, V (*sums)[kPanelColumns]) {
  const size_t k = operands.k;
  const size_t whole = k / kVecLanes * kVecLanes;
  // With several parts the same cache lines are read once for each: in pieces that the L1 cache still holds
  // by then.
  const size_t depth = V::kParts == 1 ? k + 1 : kPartDepth;
  for (int r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kPanelColumns; ++c) sums[r][c] = V::Set1(0);
  }
  for (size_t begin = 0; begin < whole; begin += depth) {
    const size_t end = whole - begin < depth ? whole : begin + depth;
    for (size_t part = 0; part < V::kParts; ++part) AddPanelPart<V, kRows>(operands, begin, end, part, sums);
  }
  if (whole == k) return;
  for (size_t c = 0; c < kPanelColumns; ++c) {
    const V w = V::Load(operands.panel + c * operands.panel_stride + whole);
    for (int r = 0; r < kRows; ++r) {
      sums[r][c] = Fma(V::LoadPartial(operands.x + r * operands.x_stride + whole, k - whole), w, sums[r][c]);
    }
  }
}

template <class V, int kRows>
inline void RunPanelTile(const Product& args, size_t row0, size_t n0, size_t count) {
  V sums[kRows][kPanelColumns];
  const size_t k = args.weights.columns;
  PanelTile<V, kRows>({args.x + row0 * args.x_stride, args.x_stride, k, args.scratch, PanelStride<V>(k)},
                      sums);
  for (int r = 0; r < kRows; ++r) {
    StoreSums(sums[r], count, args.accumulate, args.out + (row0 + r) * args.out_stride + n0);
  }
}

// The rows that do not fill a whole tile: rows in 1 .. kRows.
template <class V, int kRows>
inline void RunPanelRest(const Product& args, size_t row0, size_t rows, size_t n0, size_t count) {
  if (rows == kRows) return RunPanelTile<V, kRows>(args, row0, n0, count);
  if constexpr (kRows > 1) RunPanelRest<V, kRows - 1>(args, row0, rows, n0, count);
}

template <class V, WeightType type>
inline void DequantizePanel(const WeightMatrix& weights, size_t n0, size_t count, float* panel) {
  const size_t stride = PanelStride<V>(weights.columns);
  for (size_t c = 0; c < kPanelColumns; ++c) {
    const size_t row = n0 + (c < count ? c : count - 1);
    DequantizeRow<V, type>(weights.data + row * weights.row_bytes, weights.columns, panel + c * stride, true);
  }
}

template <class V, WeightType type>
inline void PanelMatMul(const Product& args) {
  constexpr size_t kTile = V::Part::kPanelTileRows;
  const size_t n = args.weights.rows;
  for (size_t begin = 0; begin < args.rows; begin += kRowBlock) {
    const size_t end = args.rows - begin < kRowBlock ? args.rows : begin + kRowBlock;
    for (size_t n0 = args.n_begin; n0 < args.n_end; n0 += kPanelColumns) {
      const size_t count = n - n0 < kPanelColumns ? n - n0 : kPanelColumns;
      DequantizePanel<V, type>(args.weights, n0, count, args.scratch);
      size_t row = begin;
      for (; end - row >= kTile; row += kTile) RunPanelTile<V, kTile>(args, row, n0, count);
      if (row < end) RunPanelRest<V, kTile>(args, row, end - row, n0, count);
    }
  }
}

template <class V, WeightType type, int kRows>
inline void DirectMatMul(const Product& args) {
  if (args.rows == kRows) {
    for (size_t n0 = args.n_begin; n0 < args.n_end; n0 += kPanelColumns)
      DirectTile<V, type, kRows>(args, 0, n0);
    return;
  }
  if constexpr (kRows > 1) DirectMatMul<V, type, kRows - 1>(args);
}

template <class V>
inline void RunProduct(const Product& product) {
  WithWeightType(product.weights.type, [&]<WeightType type>() {
    if (product.rows <= V::Part::kDirectRows) {
      DirectMatMul<V, type, V::Part::kDirectRows>(product);
    } else {
      PanelMatMul<V, type>(product);
    }
  });
}

// Columns [begin, end) of the weights.
inline WeightMatrix Columns(const WeightMatrix& weights, size_t begin, size_t end) {
  WeightMatrix slice = weights;
  slice.data += begin / WeightBlockElements(weights.type) * WeightBlockBytes(weights.type);
  slice.columns = end - begin;
  return slice;
}

template <class V>
void MatMul(const MatMulArgs& args, WorkShare share) {
  const WorkShare::Range range = share.Of(args.weights.rows, kPanelColumns);
  if (args.x.rows == 0 || range.begin == range.end) return;
  Product product;
  product.x_stride = args.x.columns;
  product.rows = args.x.rows;
  product.out_stride = args.out_stride == 0 ? args.weights.rows : args.out_stride;
  product.n_begin = range.begin;
  product.n_end = range.end;
  product.scratch = args.scratch + share.index * kPanelColumns * PanelStride<V>(args.weights.columns);
  const size_t segments = args.segment_ends.empty() ? 1 : args.segment_ends.size();
  size_t begin = 0;
  for (size_t i = 0; i < segments; ++i) {
    const size_t end = args.segment_ends.empty() ? args.weights.columns : args.segment_ends[i];
    product.x = args.x.x + begin;
    product.weights = Columns(args.weights, begin, end);
    product.out = args.out + (args.store == MatMulStore::kPartials ? i * args.partial_stride : 0);
    product.accumulate = args.store == MatMulStore::kAdd || (args.store == MatMulStore::kReplace && i > 0);
    RunProduct<V>(product);
    begin = end;
  }
}

}  // namespace millrace::kernels::cpu
