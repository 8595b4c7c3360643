// Causal attention over a paged KV cache (Kwon et al., arXiv 2309.06180), grouped-query (Ainslie et al.,
// arXiv 2305.13245).
//
// A block holds `block_tokens` consecutive positions of one sequence, for one layer, as elements of `type`.
// CPU backends lay them out so (CUDA's: kernels/cuda/kv_layout.h):
//   keys    [kv_heads][block_tokens / 16][head_size][16]   transposed in groups of 16 positions, so that 16
//                                                          scores are one vector of sums over head_size
//   values  [kv_heads][block_tokens][head_size]
//   key scales, value scales  [kv_heads][block_tokens]     float32, kI8 only
// Block b's keys start at element b * kv_heads * block_tokens * head_size of key_blocks, its scales at float
// b * kv_heads * block_tokens of key_scales; values likewise.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/batch.h"

namespace millrace::kernels {

inline constexpr size_t kKeyGroupTokens = 16;

enum class KvType {
  kF32,
  kF16,  // rounded to nearest even; beyond 65504 infinite
  // Each position and KV head by itself: scale = max|x| / 127, quant = x * (1 / scale) rounded to nearest
  // even, x is about scale * quant. Scale 0 if max|x| is under 127 * 2^-126. If any x is not finite the scale
  // is NaN and the quants are 0.
  kI8,
};

// Bytes of one element, without scales.
size_t KvElementBytes(KvType type);

struct PagedKv {
  uint8_t* key_blocks = nullptr;    // aligned for its elements
  uint8_t* value_blocks = nullptr;  // aligned for its elements
  float* key_scales = nullptr;      // null but for kI8
  float* value_scales = nullptr;    // null but for kI8
  KvType type = KvType::kF32;
  size_t block_tokens = 0;  // a multiple of kKeyGroupTokens
  size_t kv_heads = 0;
  size_t head_size = 0;
};

// Puts new keys and values (already rotated) at their positions. No two segments name one position of a
// block.
struct StoreKvArgs {
  PagedKv kv;
  const float* keys = nullptr;    // [rows, kv_heads, head_size]
  const float* values = nullptr;  // [rows, kv_heads, head_size]
  absl::Span<const KvSegment> segments;
  const void* tables = nullptr;  // BatchRows.tables, of `rows` rows; CPU backends read `segments` only
  size_t rows = 0;
};

// The most that a backend is asked to work on at once.
struct AttentionSizes {
  size_t max_rows = 0;
  size_t heads = 0;
  size_t head_size = 0;
  size_t context_tokens = 0;
};

// Each row attends to positions 0 .. its own of its sequence. The order of summation of one query, which
// every CPU instruction set, tile, chunk and number of threads keeps:
//   split   positions [256 s, 256 (s + 1)), counted from the start of the sequence, up to the query's own
//   score   fma over rising head_size index; kI8: times the key's scale; times `scale`
//   max_s   the largest score of the split
//   sum_s   lane l adds exp(score - max_s) of positions 16 g + l over rising g, then the 16 lanes as
//   Vec::ReduceAdd out_s   fma of exp(score - max_s), for kI8 times the value's scale, and the value over
//   rising positions
// and over rising splits, beginning with split 0 as it is (online softmax: Milakov and Gimelshein, arXiv
// 1805.02867; over tiles: Dao et al., arXiv 2205.14135; over splits that are computed apart:
// crfm.stanford.edu/2023/10/12/flashdecoding.html):
//   max' = max(max, max_s), a = exp(max - max'), b = exp(max_s - max')
//   sum = fma(sum, a, sum_s * b), out = fma(out, a, out_s * b)
// at the end out * (1 / sum).
struct PagedAttentionArgs {
  PagedKv kv;
  const float* queries = nullptr;  // [rows, heads, head_size], rotated, not scaled
  float* out = nullptr;            // [rows, heads, head_size]; only rows of segments are written
  absl::Span<const KvSegment> segments;
  size_t heads = 0;              // a multiple of kv.kv_heads; head h reads KV head h / (heads / kv_heads)
  float scale = 0;               // 1 / sqrt(head_size)
  float* scratch = nullptr;      // Backend::AttentionScratch() floats, 64-byte aligned
  const void* tables = nullptr;  // as StoreKvArgs
  size_t rows = 0;
};

}  // namespace millrace::kernels
