#include "kernels/paged_attention.h"

#include <cmath>

#include "kernels/reference/kv_elements.h"
#include "kernels/reference/ops.h"

namespace millrace::kernels::reference {
namespace {

// One position's keys and values in one KV head.
struct Place {
  Place(const PagedKv& kv, const uint32_t* block_ids, size_t position, size_t head) : kv(kv) {
    slot = position % kv.block_tokens;
    rows = (block_ids[position / kv.block_tokens] * kv.kv_heads + head) * kv.block_tokens;
  }
  size_t key(size_t d) const {
    return rows * kv.head_size + (slot / kKeyGroupTokens * kv.head_size + d) * kKeyGroupTokens +
           slot % kKeyGroupTokens;
  }
  size_t value(size_t d) const { return (rows + slot) * kv.head_size + d; }

  float Key(size_t d) const {
    return LoadKvElement(kv.type, kv.key_blocks, key(d)) *
           (kv.type == KvType::kI8 ? kv.key_scales[rows + slot] : 1.0f);
  }
  float Value(size_t d) const {
    return LoadKvElement(kv.type, kv.value_blocks, value(d)) *
           (kv.type == KvType::kI8 ? kv.value_scales[rows + slot] : 1.0f);
  }

  void Store(const float* keys, const float* values) const {
    float key_scale = 1, value_scale = 1;
    if (kv.type == KvType::kI8) {
      kv.key_scales[rows + slot] = key_scale = RoundingScale(keys, kv.head_size);
      kv.value_scales[rows + slot] = value_scale = RoundingScale(values, kv.head_size);
    }
    for (size_t d = 0; d < kv.head_size; ++d) {
      StoreKvElement(kv.type, kv.key_blocks, key(d), keys[d], key_scale);
      StoreKvElement(kv.type, kv.value_blocks, value(d), values[d], value_scale);
    }
  }

  const PagedKv& kv;
  size_t slot;  // in the block
  size_t rows;  // positions of all blocks and heads before this block and head
};

float Score(const PagedAttentionArgs& args, const Place& place, const float* query) {
  float score = 0;
  for (size_t d = 0; d < args.kv.head_size; ++d) score += query[d] * place.Key(d);
  return score * args.scale;
}

// The whole softmax at once: no splits, and the scores are worked out twice instead of being kept.
void AttendOne(const PagedAttentionArgs& args, const KvSegment& segment, size_t row, size_t head) {
  const size_t kv_head = head / (args.heads / args.kv.kv_heads);
  const size_t head_size = args.kv.head_size;
  const size_t length = segment.first_position + row + 1;
  const float* query = args.queries + ((segment.first_row + row) * args.heads + head) * head_size;
  float* out = args.out + ((segment.first_row + row) * args.heads + head) * head_size;
  float max = -INFINITY;
  for (size_t t = 0; t < length; ++t) {
    max = std::fmax(max, Score(args, Place(args.kv, segment.block_ids, t, kv_head), query));
  }
  float sum = 0;
  for (size_t d = 0; d < head_size; ++d) out[d] = 0;
  for (size_t t = 0; t < length; ++t) {
    const Place place(args.kv, segment.block_ids, t, kv_head);
    const float weight = std::exp(Score(args, place, query) - max);
    sum += weight;
    for (size_t d = 0; d < head_size; ++d) out[d] += weight * place.Value(d);
  }
  for (size_t d = 0; d < head_size; ++d) out[d] /= sum;
}

}  // namespace

void StoreKv(const StoreKvArgs& args) {
  const size_t head_size = args.kv.head_size;
  for (const KvSegment& segment : args.segments) {
    for (size_t r = 0; r < segment.rows; ++r) {
      for (size_t h = 0; h < args.kv.kv_heads; ++h) {
        const size_t source = ((segment.first_row + r) * args.kv.kv_heads + h) * head_size;
        const Place place(args.kv, segment.block_ids, segment.first_position + r, h);
        place.Store(args.keys + source, args.values + source);
      }
    }
  }
}

void PagedAttention(const PagedAttentionArgs& args) {
  for (const KvSegment& segment : args.segments) {
    for (size_t r = 0; r < segment.rows; ++r) {
      for (size_t h = 0; h < args.heads; ++h) AttendOne(args, segment, r, h);
    }
  }
}

}  // namespace millrace::kernels::reference
