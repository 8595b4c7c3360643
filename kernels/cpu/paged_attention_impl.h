// Attention over paged keys and values. Queries (row, head) that read the same KV head are worked on in
// tiles, so that each key and value loaded serves the whole tile. Canonical order of one query, whatever the
// tile:
//   score      fma over rising head_size index, times scale
//   sum        lane l adds exp(score - max) of positions 16 g + l over rising g, then Vec::ReduceAdd
//   value      fma over rising positions within splits of kSplitTokens absolute positions; splits added in
//   rising order;
//              times 1 / sum
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/exp.h"
#include "kernels/cpu/inline.h"
#include "kernels/cpu/store_kv_impl.h"
#include "kernels/cpu/tile_sizes.h"
#include "kernels/cpu/vec.h"
#include "kernels/paged_attention.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

inline constexpr size_t kSplitTokens = 256;

template <int kQueries>
struct QueryTile {
  const float* query[kQueries];
  float* scores[kQueries];  // [positions, rounded up to 16]; becomes exp(score - max)
  float* out[kQueries];
  size_t length[kQueries];  // positions the query attends to, rising
};

template <class V, int kQueries, int kGroups>
MILLRACE_KERNEL_INLINE void ScoreGroups(const HeadCache<V>& cache, const QueryTile<kQueries>& tile,
                                        size_t group, float scale) {
  const float* keys[kGroups];
  for (int g = 0; g < kGroups; ++g) keys[g] = cache.KeyGroup(group + g);
  V acc[kQueries][kGroups];
  for (int q = 0; q < kQueries; ++q) {
    for (int g = 0; g < kGroups; ++g) acc[q][g] = V::Set1(0);
  }
  for (size_t d = 0; d < cache.kv.head_size; ++d) {
    V key[kGroups];
    for (int g = 0; g < kGroups; ++g) key[g] = V::Load(keys[g] + d * kKeyGroupTokens);
    for (int q = 0; q < kQueries; ++q) {
      const V query = V::Set1(tile.query[q][d]);
      for (int g = 0; g < kGroups; ++g) acc[q][g] = Fma(query, key[g], acc[q][g]);
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    for (int g = 0; g < kGroups; ++g) {
      Mul(acc[q][g], V::Set1(scale)).Store(tile.scores[q] + (group + g) * kKeyGroupTokens);
    }
  }
}

// Scores become exp(score - max), 0 past `length`; returns their sum.
template <class V>
inline float Softmax(float* scores, size_t length) {
  const size_t whole = length / kVecLanes * kVecLanes;
  const size_t tail = length - whole;
  V most = V::Set1(-__builtin_inff());
  for (size_t i = 0; i < whole; i += kVecLanes) most = Max(most, V::Load(scores + i));
  if (tail != 0) most = Max(most, KeepFirst(V::Load(scores + whole), tail, most));
  const V max = V::Set1(V::ReduceMax(most));
  V sum = V::Set1(0);
  for (size_t i = 0; i < whole; i += kVecLanes) {
    const V e = Exp(Sub(V::Load(scores + i), max));
    e.Store(scores + i);
    sum = Add(sum, e);
  }
  if (tail != 0) {
    const V e = KeepFirst(Exp(Sub(V::Load(scores + whole), max)), tail, V::Set1(0));
    e.Store(scores + whole);
    sum = Add(sum, e);
  }
  return V::ReduceAdd(sum);
}

// partial[q][v] += weight * value over positions [begin, end), for the kVectors vectors of the head from
// `dim` on; the last vector has `last_lanes` lanes.
template <class V, int kQueries, int kVectors, bool kPartialLast>
MILLRACE_KERNEL_INLINE void AddValues(const HeadCache<V>& cache, const float* const* weights, size_t begin,
                                      size_t end, size_t dim, size_t last_lanes, V (*partial)[kVectors]) {
  const size_t head_size = cache.kv.head_size;
  V acc[kQueries][kVectors];
  for (int q = 0; q < kQueries; ++q) {
    for (int v = 0; v < kVectors; ++v) acc[q][v] = partial[q][v];
  }
  for (size_t position = begin; position < end;) {
    const size_t group = position / kKeyGroupTokens;
    const size_t group_end = (group + 1) * kKeyGroupTokens < end ? (group + 1) * kKeyGroupTokens : end;
    const float* values = cache.ValueGroup(group) + position % kKeyGroupTokens * head_size + dim;
    for (; position < group_end; ++position, values += head_size) {
      V value[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const bool cut = kPartialLast && v == kVectors - 1;
        value[v] = cut ? V::LoadPartial(values + v * kVecLanes, last_lanes) : V::Load(values + v * kVecLanes);
      }
      for (int q = 0; q < kQueries; ++q) {
        const V weight = V::Set1(weights[q][position]);
        for (int v = 0; v < kVectors; ++v) acc[q][v] = Fma(weight, value[v], acc[q][v]);
      }
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    for (int v = 0; v < kVectors; ++v) partial[q][v] = acc[q][v];
  }
}

// out[q][dim ..] = sum of weighted values, unnormalised, split by split. The positions all queries attend to
// are added together, the few at the end that only later rows see one query at a time.
template <class V, int kQueries, int kVectors, bool kPartialLast>
inline void SumValues(const HeadCache<V>& cache, const QueryTile<kQueries>& tile, size_t dim,
                      size_t last_lanes) {
  const size_t shortest = tile.length[0];
  const size_t longest = tile.length[kQueries - 1];
  for (size_t begin = 0; begin < longest; begin += kSplitTokens) {
    const size_t end = begin + kSplitTokens;
    size_t common = end < shortest ? end : shortest;
    if (common < begin) common = begin;
    V partial[kQueries][kVectors];
    for (int q = 0; q < kQueries; ++q) {
      for (int v = 0; v < kVectors; ++v) partial[q][v] = V::Set1(0);
    }
    AddValues<V, kQueries, kVectors, kPartialLast>(cache, tile.scores, begin, common, dim, last_lanes,
                                                   partial);
    for (int q = 0; q < kQueries; ++q) {
      if (tile.length[q] <= begin) continue;
      const size_t own_end = end < tile.length[q] ? end : tile.length[q];
      if (own_end > common) {
        AddValues<V, 1, kVectors, kPartialLast>(cache, tile.scores + q, common, own_end, dim, last_lanes,
                                                partial + q);
      }
      for (int v = 0; v < kVectors; ++v) {
        const size_t lanes = v == kVectors - 1 ? last_lanes : kVecLanes;
        float* out = tile.out[q] + dim + v * kVecLanes;
        const V sum = begin == 0 ? partial[q][v] : Add(V::LoadPartial(out, lanes), partial[q][v]);
        sum.StorePartial(out, lanes);
      }
    }
  }
}

template <class V, int kQueries>
inline void SumAllValues(const HeadCache<V>& cache, const QueryTile<kQueries>& tile) {
  constexpr int kVectors = V::Part::kAttentionVectors;
  const size_t head_size = cache.kv.head_size;
  size_t dim = 0;
  for (; head_size - dim >= kVectors * kVecLanes; dim += kVectors * kVecLanes) {
    SumValues<V, kQueries, kVectors, false>(cache, tile, dim, kVecLanes);
  }
  for (; head_size - dim >= kVecLanes; dim += kVecLanes) {
    SumValues<V, kQueries, 1, false>(cache, tile, dim, kVecLanes);
  }
  if (dim < head_size) SumValues<V, kQueries, 1, true>(cache, tile, dim, head_size - dim);
}

template <class V>
inline void ScaleOut(float* out, size_t count, float factor) {
  const V scale = V::Set1(factor);
  size_t i = 0;
  for (; count - i >= kVecLanes; i += kVecLanes) Mul(V::Load(out + i), scale).Store(out + i);
  if (i < count) Mul(V::LoadPartial(out + i, count - i), scale).StorePartial(out + i, count - i);
}

// Queries first .. first + kQueries of one KV head, numbered row by row.
template <class V, int kQueries>
inline void AttendTile(const PagedAttentionArgs& args, size_t kv_head, size_t first) {
  constexpr int kGroups = V::Part::kAttentionVectors;
  const size_t heads_per_kv = args.heads / args.kv.kv_heads;
  const size_t head_size = args.kv.head_size;
  const size_t longest = args.first_position + (first + kQueries - 1) / heads_per_kv + 1;
  const size_t groups = (longest + kKeyGroupTokens - 1) / kKeyGroupTokens;
  QueryTile<kQueries> tile;
  for (int q = 0; q < kQueries; ++q) {
    const size_t row = (first + q) / heads_per_kv;
    const size_t head = kv_head * heads_per_kv + (first + q) % heads_per_kv;
    tile.query[q] = args.queries + (row * args.heads + head) * head_size;
    tile.out[q] = args.out + (row * args.heads + head) * head_size;
    tile.scores[q] = args.scratch + q * groups * kKeyGroupTokens;
    tile.length[q] = args.first_position + row + 1;
  }
  const HeadCache<V> cache{args.kv, args.block_ids, kv_head};
  size_t group = 0;
  for (; groups - group >= kGroups; group += kGroups) {
    ScoreGroups<V, kQueries, kGroups>(cache, tile, group, args.scale);
  }
  for (; group < groups; ++group) ScoreGroups<V, kQueries, 1>(cache, tile, group, args.scale);
  float sums[kQueries];
  for (int q = 0; q < kQueries; ++q) sums[q] = Softmax<V>(tile.scores[q], tile.length[q]);
  SumAllValues<V, kQueries>(cache, tile);
  for (int q = 0; q < kQueries; ++q) ScaleOut<V>(tile.out[q], head_size, 1.0f / sums[q]);
}

// The queries that do not fill a whole tile: count in 1 .. kQueries.
template <class V, int kQueries>
inline void AttendRest(const PagedAttentionArgs& args, size_t kv_head, size_t first, size_t count) {
  if (count == kQueries) return AttendTile<V, kQueries>(args, kv_head, first);
  if constexpr (kQueries > 1) AttendRest<V, kQueries - 1>(args, kv_head, first, count);
}

template <class V>
void PagedAttention(const PagedAttentionArgs& args, WorkShare share) {
  if (share.index != 0) return;
  constexpr size_t kTile = V::Part::kAttentionQueries;
  static_assert(kTile <= kMaxAttentionQueries);
  const size_t queries = args.rows * (args.heads / args.kv.kv_heads);
  for (size_t kv_head = 0; kv_head < args.kv.kv_heads; ++kv_head) {
    size_t first = 0;
    for (; queries - first >= kTile; first += kTile) AttendTile<V, kTile>(args, kv_head, first);
    if (first < queries) AttendRest<V, kTile>(args, kv_head, first, queries - first);
  }
}

}  // namespace millrace::kernels::cpu
