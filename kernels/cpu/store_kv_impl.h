// Putting new keys and values into their blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/kv_elements_impl.h"
#include "kernels/cpu/vec.h"
#include "kernels/paged_attention.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

// One position's keys and values of one KV head; `row` counts the positions of all blocks and heads before
// this block and head, `slot` is the position's in the block.
template <class V, KvType kType>
inline void StorePosition(const PagedKv& kv, size_t row, size_t slot, const float* keys,
                          const float* values) {
  constexpr size_t kBytes = kKvBytes<kType>;
  const size_t group = row + slot / kKeyGroupTokens * kKeyGroupTokens;
  uint8_t* key = kv.key_blocks + (group * kv.head_size + slot % kKeyGroupTokens) * kBytes;
  uint8_t* value = kv.value_blocks + (row + slot) * kv.head_size * kBytes;
  const Rounding<V, kType> key_rounding(keys, kv.head_size);
  const Rounding<V, kType> value_rounding(values, kv.head_size);
  if constexpr (kType == KvType::kI8) {
    kv.key_scales[row + slot] = key_rounding.scale;
    kv.value_scales[row + slot] = value_rounding.scale;
  }
  alignas(64) uint8_t rounded[kVecLanes * kBytes];
  for (size_t i = 0; i < kv.head_size; i += kVecLanes) {
    const size_t lanes = kv.head_size - i < kVecLanes ? kv.head_size - i : kVecLanes;
    key_rounding.Store(V::LoadPartial(keys + i, lanes), rounded);
    for (size_t j = 0; j < lanes; ++j) {
      std::memcpy(key + (i + j) * kKeyGroupTokens * kBytes, rounded + j * kBytes, kBytes);
    }
    value_rounding.Store(V::LoadPartial(values + i, lanes), rounded);
    for (size_t j = 0; j < lanes * kBytes; ++j) value[i * kBytes + j] = rounded[j];
  }
}

template <class V, KvType kType>
inline void StoreSegmentHead(const StoreKvArgs& args, const KvSegment& segment, size_t head) {
  const PagedKv& kv = args.kv;
  for (size_t r = 0; r < segment.rows; ++r) {
    const size_t position = segment.first_position + r;
    const size_t block = segment.block_ids[position / kv.block_tokens];
    const size_t source = ((segment.first_row + r) * kv.kv_heads + head) * kv.head_size;
    StorePosition<V, kType>(kv, (block * kv.kv_heads + head) * kv.block_tokens, position % kv.block_tokens,
                            args.keys + source, args.values + source);
  }
}

// Shares are of heads: positions of one head lie in the same cache lines.
template <class V>
void StoreKv(const StoreKvArgs& args, WorkShare share) {
  const size_t heads = args.kv.kv_heads;
  const WorkShare::Range range = share.Of(args.segments.size() * heads);
  for (size_t i = range.begin; i < range.end; ++i) {
    const KvSegment& segment = args.segments.data()[i / heads];
    switch (args.kv.type) {
      case KvType::kF32:
        StoreSegmentHead<V, KvType::kF32>(args, segment, i % heads);
        break;
      case KvType::kF16:
        StoreSegmentHead<V, KvType::kF16>(args, segment, i % heads);
        break;
      case KvType::kI8:
        StoreSegmentHead<V, KvType::kI8>(args, segment, i % heads);
        break;
    }
  }
}

}  // namespace millrace::kernels::cpu
