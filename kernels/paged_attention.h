// Causal attention over a paged KV cache (Kwon et al., arXiv 2309.06180), grouped-query (Ainslie et al.,
// arXiv 2305.13245).
//
// A block holds `block_tokens` consecutive positions of one sequence, for one layer:
//   keys    [kv_heads][block_tokens / 16][head_size][16]   transposed in groups of 16 positions, so that 16
//   scores are
//                                                          one vector of sums over head_size
//   values  [kv_heads][block_tokens][head_size]
// Block b's keys start at key_blocks + b * kv_heads * block_tokens * head_size floats; values likewise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::kernels {

inline constexpr size_t kKeyGroupTokens = 16;

struct PagedKv {
  float* key_blocks = nullptr;
  float* value_blocks = nullptr;
  size_t block_tokens = 0;  // a multiple of kKeyGroupTokens
  size_t kv_heads = 0;
  size_t head_size = 0;
};

// Puts new keys and values (already rotated) at their positions.
struct StoreKvArgs {
  PagedKv kv;
  const float* keys = nullptr;          // [rows, kv_heads, head_size]
  const float* values = nullptr;        // [rows, kv_heads, head_size]
  const uint32_t* block_ids = nullptr;  // block table of the one sequence all rows belong to
  uint32_t first_position = 0;          // of row 0; rows are consecutive
  size_t rows = 0;
};

// Row i attends to positions 0 .. first_position + i of its sequence.
struct PagedAttentionArgs {
  PagedKv kv;
  const float* queries = nullptr;       // [rows, heads, head_size], rotated, not scaled
  float* out = nullptr;                 // [rows, heads, head_size]
  const uint32_t* block_ids = nullptr;  // block table of the one sequence all rows belong to
  uint32_t first_position = 0;
  size_t rows = 0;
  size_t heads = 0;          // a multiple of kv.kv_heads; head h reads KV head h / (heads / kv_heads)
  float scale = 0;           // 1 / sqrt(head_size)
  float* scratch = nullptr;  // Backend::AttentionScratchFloats() floats, 64-byte aligned
};

}  // namespace millrace::kernels
