// Attention on tensor cores, one split of one block's columns at a time: scores K Q^T with 16 positions as
// the rows of a product and 8 queries as its columns, then V^T P^T with 16 head dims as the rows. A column is
// a query head of a row; the heads of a KV head, and neighbouring rows of a sequence, share what is read (Dao
// et al., arXiv 2205.14135; the context is split as in crfm.stanford.edu/2023/10/12/flashdecoding.html).
//
// Operands come from memory as they lie there (kv_layout.h): a lane reads 4 neighbouring elements, which the
// product takes for elements 2 t, 2 t + 1, 2 t + 8 and 2 t + 9; Q and P are read in the same order, so the
// sums are over the same elements.
//
// One order of summation, whatever the batch and the tile: head dims 16 at a time; positions of a split of
// 256 by tiles of 16, for P V in rising order; the sum of a split's weights by lane, then over lanes, then
// over warps; splits in rising order as kernels/paged_attention.h says. Positions behind a column's own have
// weight 0, which adds nothing. Queries, and weights (which are at most 1), are rounded to float16.
#pragma once

#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/mma.cuh"

namespace millrace::kernels::cuda::attention {

inline constexpr uint32_t kSplit = 256;
inline constexpr uint32_t kTile = 16;
inline constexpr uint32_t kWarps = 4;
inline constexpr uint32_t kThreads = kWarps * kWarp;
inline constexpr uint32_t kColumns = 8;   // of a product
inline constexpr uint32_t kPadding = 16;  // halves behind each row in shared memory, against bank conflicts
inline constexpr float kMinusInfinity = -__builtin_huge_valf();

struct Attention {
  BatchTables tables;
  KvShape shape;
  const uint8_t* key_blocks;
  const uint8_t* value_blocks;
  const float* key_scales;
  const float* value_scales;
  const float* queries;
  float* out;
  float* parts;  // [rows, heads, splits, 2 + head_size]: maximum, sum, values; null: merged by the block
  uint32_t splits;
  uint32_t heads;
  uint32_t group;      // query heads of a KV head
  uint32_t chunks;     // that a group's columns are cut into
  uint32_t tile_rows;  // rows of a block
  float scale;
};

__device__ __forceinline__ float Max(float a, float b) {
  return b > a ? b : a;
}

// Which columns a block has.
struct Columns {
  uint32_t row;         // of the batch, of the first column
  uint32_t width;       // columns of a row
  uint32_t count;       // in use
  uint32_t first_head;  // query head of the first column
  uint32_t position;    // of that row
  uint32_t last;        // position of the last row
  const uint32_t* blocks;

  __device__ uint32_t HeadOf(uint32_t column) const { return first_head + column % width; }
  __device__ uint32_t RowOf(uint32_t column) const { return row + column / width; }
  // Of no column: before all positions.
  __device__ int OwnOf(uint32_t column) const {
    return column < count ? static_cast<int>(position + column / width) : -1;
  }
};

__device__ __forceinline__ __half2 AsHalves(uint32_t bits) {
  return __halves2half2(__ushort_as_half(static_cast<unsigned short>(bits & 0xffffu)),
                        __ushort_as_half(static_cast<unsigned short>(bits >> 16)));
}

__device__ __forceinline__ uint32_t AsBits(__half2 halves) {
  return __half_as_ushort(__low2half(halves)) | static_cast<uint32_t>(__half_as_ushort(__high2half(halves)))
                                                    << 16;
}

// Four elements as two pairs of halves.
template <bool bytes>
__device__ __forceinline__ uint2 LoadFour(const uint8_t* blocks, size_t at) {
  if constexpr (!bytes) return *reinterpret_cast<const uint2*>(blocks + 2 * at);
  // 0x6400 | u is the half 1024 + u, and u = x + 128.
  const uint32_t four = *reinterpret_cast<const uint32_t*>(blocks + at) ^ 0x80808080u;
  const __half2 bias = AsHalves(0x64806480u);
  return make_uint2(AsBits(__hsub2(AsHalves(__byte_perm(four, 0x64646464u, 0x4140)), bias)),
                    AsBits(__hsub2(AsHalves(__byte_perm(four, 0x64646464u, 0x4342)), bias)));
}

struct Add {
  __device__ float operator()(float a, float b) const { return __fadd_rn(a, b); }
};
struct Largest {
  __device__ float operator()(float a, float b) const { return Max(a, b); }
};

// Largest, or sum, over the eight lanes of a column.
template <class Combine>
__device__ __forceinline__ float OverRows(float x, Combine combine) {
  for (int step = 4; step < kWarp; step *= 2) x = combine(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

template <int tiles>
struct Shared {
  static constexpr uint32_t kCount = tiles * kColumns;
  static constexpr uint32_t kWeightStride = kSplit + kPadding;
  float reduced[3][kWarps][kCount];  // maximum, largest scale, sum
  __half weights[kCount * kWeightStride];
  // [kCount][head_size + kPadding]
  __device__ __half* queries() { return reinterpret_cast<__half*>(this + 1); }
};

// One column's running maximum and sum.
struct Running {
  float most;
  float sum;
};

template <int tiles>
__device__ __forceinline__ void LoadQueries(const Attention& args, const Columns& columns,
                                            Shared<tiles>& shared) {
  const uint32_t size = args.shape.head_size;
  __half* queries = shared.queries();
  for (uint32_t i = threadIdx.x; i < Shared<tiles>::kCount * size; i += kThreads) {
    const uint32_t column = i / size;
    const uint32_t dim = i - column * size;
    float query = 0;
    if (column < columns.count) {
      query =
          args.queries[(size_t{columns.RowOf(column)} * args.heads + columns.HeadOf(column)) * size + dim];
    }
    queries[column * (size + kPadding) + dim] = __float2half_rn(query);
  }
}

// Scores of this warp's tiles: scores[i][c] of tile kWarps i + warp; minus infinity where a column sees
// nothing. Of kI8, value_scale likewise, of rows g and g + 8.
template <bool bytes, int tiles>
__device__ __forceinline__ void Score(const Attention& args, const Columns& columns, uint32_t begin,
                                      Shared<tiles>& shared, float (&scores)[4][tiles][4]) {
  const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp = threadIdx.x / kWarp;
  const KvShape& shape = args.shape;
  const uint32_t kv_head = blockIdx.y / args.chunks;
  const __half* queries = shared.queries();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    for (int c = 0; c < tiles; ++c) {
      for (int j = 0; j < 4; ++j) scores[i][c][j] = 0;
    }
    const uint32_t position = begin + (kWarps * i + warp) * kTile;
    if (position > columns.last) continue;
    const uint32_t index = position / shape.block_tokens;
    const uint32_t slot = position - index * shape.block_tokens;
    const uint32_t block = columns.blocks[index];
    const size_t at = shape.KeyAt(block, kv_head, slot + g, 4 * t);
    for (uint32_t dim = 0; dim < shape.head_size; dim += kTile) {
      const uint2 low = LoadFour<bytes>(args.key_blocks, at + dim);
      const uint2 high = LoadFour<bytes>(args.key_blocks, at + 8 * shape.head_size + dim);
      const uint32_t a[4] = {low.x, high.x, low.y, high.y};
#pragma unroll
      for (int c = 0; c < tiles; ++c) {
        if (c * kColumns >= columns.count) continue;
        const uint2 q = *reinterpret_cast<const uint2*>(
            queries + (c * kColumns + g) * (shape.head_size + kPadding) + dim + 4 * t);
        const uint32_t b[2] = {q.x, q.y};
        mma_f16(scores[i][c], a, b);
      }
    }
    float key_scales[2] = {1, 1};
    if constexpr (bytes) {
      const size_t scale_at = shape.ScaleAt(block, kv_head, slot + g);
      key_scales[0] = args.key_scales[scale_at];
      key_scales[1] = args.key_scales[scale_at + 8];
    }
    for (int c = 0; c < tiles; ++c) {
      for (int j = 0; j < 4; ++j) {
        const int own = columns.OwnOf(c * kColumns + 2 * t + j % 2);
        const bool seen = static_cast<int>(position + g + j / 2 * 8) <= own;
        float score = scores[i][c][j];
        if constexpr (bytes) score = __fmul_rn(score, key_scales[j / 2]);
        scores[i][c][j] = seen ? __fmul_rn(score, args.scale) : kMinusInfinity;
      }
    }
  }
}

// The largest scale of a column's values gets an exponent of 0, so that weights times scales, which are
// rounded to float16, keep their digits. A power of two: exact.
struct Normal {
  float down;
  float up;
};
__device__ __forceinline__ Normal NormalOf(float largest) {
  const uint32_t exponent = __float_as_uint(largest) >> 23;
  const uint32_t clamped = exponent == 0 || exponent > 253 ? (exponent == 0 ? 127 : 253) : exponent;
  return {__uint_as_float((254 - clamped) << 23), __uint_as_float(clamped << 23)};
}

// What Weigh needs of the values' scales of a tile.
__device__ __forceinline__ void ValueScales(const Attention& args, const Columns& columns, uint32_t position,
                                            float (&scales)[2]) {
  const uint32_t index = position / args.shape.block_tokens;
  const uint32_t slot = position - index * args.shape.block_tokens;
  const size_t at =
      args.shape.ScaleAt(columns.blocks[index], blockIdx.y / args.chunks, slot + threadIdx.x % kWarp / 4);
  scales[0] = args.value_scales[at];
  scales[1] = args.value_scales[at + 8];
}

// The largest score, and scale of values, of each column of this lane: [tile][column].
template <bool bytes, int tiles>
__device__ __forceinline__ void FindLargest(const Attention& args, const Columns& columns, uint32_t begin,
                                            Shared<tiles>& shared, const float (&scores)[4][tiles][4]) {
  const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp = threadIdx.x / kWarp;
  float most[tiles][2], scale[tiles][2];
  for (int c = 0; c < tiles; ++c) {
    for (int j = 0; j < 2; ++j) {
      most[c][j] = kMinusInfinity;
      scale[c][j] = 0;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t position = begin + (kWarps * i + warp) * kTile;
    if (position > columns.last) continue;
    float scales[2] = {0, 0};
    if constexpr (bytes) ValueScales(args, columns, position, scales);
    for (int c = 0; c < tiles; ++c) {
      for (int j = 0; j < 4; ++j) {
        most[c][j % 2] = Max(most[c][j % 2], scores[i][c][j]);
        const int own = columns.OwnOf(c * kColumns + 2 * t + j % 2);
        if (bytes && static_cast<int>(position + g + j / 2 * 8) <= own) {
          scale[c][j % 2] = Max(scale[c][j % 2], scales[j / 2]);
        }
      }
    }
  }
  for (int c = 0; c < tiles; ++c) {
    for (int j = 0; j < 2; ++j) {
      const float largest = OverRows(most[c][j], Largest());
      const float largest_scale = bytes ? OverRows(scale[c][j], Largest()) : 0;
      if (g != 0) continue;
      shared.reduced[0][warp][c * kColumns + 2 * t + j] = largest;
      shared.reduced[1][warp][c * kColumns + 2 * t + j] = largest_scale;
    }
  }
}

template <int tiles, class Combine>
__device__ __forceinline__ float OverWarps(const Shared<tiles>& shared, int which, uint32_t column,
                                           Combine combine) {
  float x = shared.reduced[which][0][column];
  for (uint32_t warp = 1; warp < kWarps; ++warp) x = combine(x, shared.reduced[which][warp][column]);
  return x;
}

// Weights of this warp's tiles into shared memory, and their sums.
template <bool bytes, int tiles>
__device__ __forceinline__ void Weigh(const Attention& args, const Columns& columns, uint32_t begin,
                                      Shared<tiles>& shared, float (&scores)[4][tiles][4]) {
  const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp = threadIdx.x / kWarp;
  float most[tiles][2], down[tiles][2], sum[tiles][2];
  for (int c = 0; c < tiles; ++c) {
    for (int j = 0; j < 2; ++j) {
      const uint32_t column = c * kColumns + 2 * t + j;
      most[c][j] = OverWarps(shared, 0, column, Largest());
      down[c][j] = bytes ? NormalOf(OverWarps(shared, 1, column, Largest())).down : 1;
      sum[c][j] = 0;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t tile = kWarps * i + warp;
    if (begin + tile * kTile > columns.last) continue;
    float scales[2] = {1, 1};
    if constexpr (bytes) ValueScales(args, columns, begin + tile * kTile, scales);
    for (int c = 0; c < tiles; ++c) {
      for (int j = 0; j < 4; ++j) {
        const uint32_t column = c * kColumns + 2 * t + j % 2;
        const uint32_t row = g + j / 2 * 8;
        const bool seen = static_cast<int>(begin + tile * kTile + row) <= columns.OwnOf(column);
        float weight = seen ? Exp(__fsub_rn(scores[i][c][j], most[c][j % 2])) : 0.0f;
        sum[c][j % 2] = __fadd_rn(sum[c][j % 2], weight);
        if (bytes && seen) weight = __fmul_rn(weight, __fmul_rn(scales[j / 2], down[c][j % 2]));
        shared.weights[column * Shared<tiles>::kWeightStride + tile * kTile + row] = __float2half_rn(weight);
      }
    }
  }
  for (int c = 0; c < tiles; ++c) {
    for (int j = 0; j < 2; ++j) {
      const float all = OverRows(sum[c][j], Add());
      if (g == 0) shared.reduced[2][warp][c * kColumns + 2 * t + j] = all;
    }
  }
}

// What is behind the last position may be anything: halves of `four` from position `first` on become 0.
__device__ __forceinline__ uint2 Before(uint2 four, uint32_t first, uint32_t end) {
  const uint32_t left = end > first ? end - first : 0;
  const uint32_t low = left >= 2 ? 0xffffffffu : left == 1 ? 0xffffu : 0;
  const uint32_t high = left >= 4 ? 0xffffffffu : left == 3 ? 0xffffu : 0;
  return make_uint2(four.x & low, four.y & high);
}

// values[j] = those of head dims 16 (kWarps j + warp) and up.
template <bool bytes, int tiles, int dim_tiles>
__device__ __forceinline__ void MultiplyValues(const Attention& args, const Columns& columns, uint32_t begin,
                                               const Shared<tiles>& shared,
                                               float (&values)[dim_tiles][tiles][4]) {
  const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp = threadIdx.x / kWarp;
  const KvShape& shape = args.shape;
  const uint32_t kv_head = blockIdx.y / args.chunks;
  for (int j = 0; j < dim_tiles; ++j) {
    for (int c = 0; c < tiles; ++c) {
      for (int k = 0; k < 4; ++k) values[j][c][k] = 0;
    }
  }
  for (uint32_t position = begin; position < begin + kSplit && position <= columns.last; position += kTile) {
    const uint32_t index = position / shape.block_tokens;
    const uint32_t slot = position - index * shape.block_tokens;
    const size_t at = shape.ValueAt(columns.blocks[index], kv_head, slot, g) + 4 * t;
    uint32_t b[tiles][2];
#pragma unroll
    for (int c = 0; c < tiles; ++c) {
      const uint2 p = *reinterpret_cast<const uint2*>(
          shared.weights + (c * kColumns + g) * Shared<tiles>::kWeightStride + (position - begin) + 4 * t);
      b[c][0] = p.x;
      b[c][1] = p.y;
    }
#pragma unroll
    for (int j = 0; j < dim_tiles; ++j) {
      const uint32_t dim = (kWarps * j + warp) * kTile;
      if (dim >= shape.head_size) continue;
      uint2 low = LoadFour<bytes>(args.value_blocks, at + dim * kTile);
      uint2 high = LoadFour<bytes>(args.value_blocks, at + (dim + 8) * kTile);
      low = Before(low, position + 4 * t, columns.last + 1);
      high = Before(high, position + 4 * t, columns.last + 1);
      const uint32_t a[4] = {low.x, high.x, low.y, high.y};
#pragma unroll
      for (int c = 0; c < tiles; ++c) {
        if (c * kColumns < columns.count) mma_f16(values[j][c], a, b[c]);
      }
    }
  }
}

}  // namespace millrace::kernels::cuda::attention
