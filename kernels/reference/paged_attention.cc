#include "kernels/paged_attention.h"

#include <cmath>

#include "kernels/reference/ops.h"

namespace millrace::kernels::reference {
namespace {

size_t HeadOffset(const PagedKv& kv, const uint32_t* block_ids, size_t position, size_t head) {
  const size_t block = block_ids[position / kv.block_tokens];
  return (block * kv.kv_heads + head) * kv.block_tokens * kv.head_size;
}

float& KeyAt(const PagedKv& kv, const uint32_t* block_ids, size_t position, size_t head, size_t d) {
  const size_t slot = position % kv.block_tokens;
  return kv
      .key_blocks[HeadOffset(kv, block_ids, position, head) +
                  (slot / kKeyGroupTokens * kv.head_size + d) * kKeyGroupTokens + slot % kKeyGroupTokens];
}

float& ValueAt(const PagedKv& kv, const uint32_t* block_ids, size_t position, size_t head, size_t d) {
  return kv.value_blocks[HeadOffset(kv, block_ids, position, head) +
                         position % kv.block_tokens * kv.head_size + d];
}

void AttendOne(const PagedAttentionArgs& args, size_t row, size_t head) {
  const size_t kv_head = head / (args.heads / args.kv.kv_heads);
  const size_t head_size = args.kv.head_size;
  const size_t length = args.first_position + row + 1;
  const float* query = args.queries + (row * args.heads + head) * head_size;
  float* out = args.out + (row * args.heads + head) * head_size;
  float* weights = args.scratch;
  float max = -INFINITY;
  for (size_t t = 0; t < length; ++t) {
    float score = 0;
    for (size_t d = 0; d < head_size; ++d) score += query[d] * KeyAt(args.kv, args.block_ids, t, kv_head, d);
    weights[t] = score * args.scale;
    max = std::fmax(max, weights[t]);
  }
  float sum = 0;
  for (size_t t = 0; t < length; ++t) {
    weights[t] = std::exp(weights[t] - max);
    sum += weights[t];
  }
  for (size_t d = 0; d < head_size; ++d) {
    float value = 0;
    for (size_t t = 0; t < length; ++t) value += weights[t] * ValueAt(args.kv, args.block_ids, t, kv_head, d);
    out[d] = value / sum;
  }
}

}  // namespace

void StoreKv(const StoreKvArgs& args) {
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t h = 0; h < args.kv.kv_heads; ++h) {
      for (size_t d = 0; d < args.kv.head_size; ++d) {
        const size_t source = (r * args.kv.kv_heads + h) * args.kv.head_size + d;
        KeyAt(args.kv, args.block_ids, args.first_position + r, h, d) = args.keys[source];
        ValueAt(args.kv, args.block_ids, args.first_position + r, h, d) = args.values[source];
      }
    }
  }
}

void PagedAttention(const PagedAttentionArgs& args) {
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t h = 0; h < args.heads; ++h) AttendOne(args, r, h);
  }
}

}  // namespace millrace::kernels::reference
