// How blocks of the KV cache lie in device memory.
//
//   keys    [kv_heads][block_tokens][head_size]
//   values  [kv_heads][block_tokens / 16][head_size][16]   transposed in groups of 16 positions
//   key scales, value scales  [kv_heads][block_tokens]     float32, kI8 only
//
// so that the operands of attention's products (paged_attention.cu) are read from memory as the tensor cores
// take them: 16 head dims of a position, and 16 positions of a head dim, are 32 bytes in a row (kI8: 16).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/batch_tables.h"

namespace millrace::kernels::cuda {

struct KvShape {
  uint32_t block_tokens;  // a multiple of 16
  uint32_t kv_heads;
  uint32_t head_size;

  // Element, and scale, of a block's head; `slot` is the position in the block.
  MILLRACE_HOST_DEVICE size_t HeadAt(uint32_t block, uint32_t head) const {
    return (size_t{block} * kv_heads + head) * block_tokens * head_size;
  }
  MILLRACE_HOST_DEVICE size_t KeyAt(uint32_t block, uint32_t head, uint32_t slot, uint32_t dim) const {
    return HeadAt(block, head) + size_t{slot} * head_size + dim;
  }
  MILLRACE_HOST_DEVICE size_t ValueAt(uint32_t block, uint32_t head, uint32_t slot, uint32_t dim) const {
    return HeadAt(block, head) + size_t{slot / 16} * 16 * head_size + size_t{dim} * 16 + slot % 16;
  }
  MILLRACE_HOST_DEVICE size_t ScaleAt(uint32_t block, uint32_t head, uint32_t slot) const {
    return (size_t{block} * kv_heads + head) * block_tokens + slot;
  }
};

}  // namespace millrace::kernels::cuda
