// Where keys and values lie in their blocks, and putting new ones there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/paged_attention.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

// The cache of one sequence and one KV head. Groups are of kKeyGroupTokens positions; a group never crosses a
// block. A template on the vector type only so that each instruction set has its own copy of the code (see
// vec.h).
template <class V>
struct HeadCache {
  PagedKv kv;
  const uint32_t* block_ids;
  size_t kv_head;

  size_t GroupOffset(size_t group) const {
    const size_t position = group * kKeyGroupTokens;
    const size_t block = block_ids[position / kv.block_tokens];
    return ((block * kv.kv_heads + kv_head) * kv.block_tokens + position % kv.block_tokens) * kv.head_size;
  }
  float* KeyGroup(size_t group) const { return kv.key_blocks + GroupOffset(group); }      // [head_size][16]
  float* ValueGroup(size_t group) const { return kv.value_blocks + GroupOffset(group); }  // [16][head_size]
};

template <class V>
void StoreKv(const StoreKvArgs& args, WorkShare share) {
  const WorkShare::Range heads = share.Of(args.kv.kv_heads);
  const size_t head_size = args.kv.head_size;
  for (size_t h = heads.begin; h < heads.end; ++h) {
    const HeadCache<V> cache{args.kv, args.block_ids, h};
    for (size_t r = 0; r < args.rows; ++r) {
      const size_t position = args.first_position + r;
      const size_t slot = position % kKeyGroupTokens;
      const size_t source = (r * args.kv.kv_heads + h) * head_size;
      float* keys = cache.KeyGroup(position / kKeyGroupTokens) + slot;
      for (size_t d = 0; d < head_size; ++d) keys[d * kKeyGroupTokens] = args.keys[source + d];
      float* values = cache.ValueGroup(position / kKeyGroupTokens) + slot * head_size;
      std::memcpy(values, args.values + source, head_size * sizeof(float));
    }
  }
}

}  // namespace millrace::kernels::cpu
