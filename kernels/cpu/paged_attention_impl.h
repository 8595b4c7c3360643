// Attention over paged keys and values, in the order of summation that paged_attention.h gives. Queries that
// read the same KV head go through a split in tiles, so that each key and value loaded serves the whole tile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/exp.h"
#include "kernels/cpu/inline.h"
#include "kernels/cpu/kv_elements_impl.h"
#include "kernels/cpu/tile_sizes.h"
#include "kernels/cpu/vec.h"
#include "kernels/paged_attention.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

inline constexpr size_t kSplitGroups = kSplitTokens / kKeyGroupTokens;

// One split of one KV head of a sequence, by groups of kKeyGroupTokens positions (which never cross a block).
// These are templates on the vector type so that each instruction set has its own copy of the code.
template <class V>
struct Split {
  size_t begin;  // its first position
  size_t groups;
  size_t head_size;
  const uint8_t* keys[kSplitGroups];    // [head_size][16]
  const uint8_t* values[kSplitGroups];  // [16][head_size]
  const float* key_scales[kSplitGroups];
  const float* value_scales[kSplitGroups];
};

template <class V, KvType kType>
inline void FindSplit(const PagedKv& kv, const uint32_t* block_ids, const AttentionItem& item, size_t number,
                      Split<V>* split) {
  split->begin = number * kSplitTokens;
  split->head_size = kv.head_size;
  const size_t positions = item.positions - split->begin;
  split->groups =
      positions >= kSplitTokens ? kSplitGroups : (positions + kKeyGroupTokens - 1) / kKeyGroupTokens;
  size_t block = split->begin / kv.block_tokens;
  size_t slot = split->begin % kv.block_tokens;
  for (size_t g = 0; g < split->groups; ++g) {
    const size_t row = (block_ids[block] * kv.kv_heads + item.kv_head) * kv.block_tokens + slot;
    split->keys[g] = kv.key_blocks + row * kv.head_size * kKvBytes<kType>;
    split->values[g] = kv.value_blocks + row * kv.head_size * kKvBytes<kType>;
    if constexpr (kType == KvType::kI8) {
      split->key_scales[g] = kv.key_scales + row;
      split->value_scales[g] = kv.value_scales + row;
    }
    slot += kKeyGroupTokens;
    if (slot == kv.block_tokens) {
      slot = 0;
      ++block;
    }
  }
}

// The queries of an item; how many positions each attends to never falls.
template <class V>
struct ItemQueries {
  size_t count;
  const float* query[kItemQueries];
  float* out[kItemQueries];
  size_t length[kItemQueries];
};

template <class V>
inline void FindQueries(const PagedAttentionArgs& args, const KvSegment& segment, const AttentionItem& item,
                        ItemQueries<V>* queries) {
  const size_t group = args.heads / args.kv.kv_heads;
  size_t row = item.first_query / group;
  size_t head = item.first_query % group;
  queries->count = item.queries;
  for (size_t q = 0; q < item.queries; ++q) {
    const size_t at =
        ((segment.first_row + row) * args.heads + item.kv_head * group + head) * args.kv.head_size;
    queries->query[q] = args.queries + at;
    queries->out[q] = args.out + at;
    queries->length[q] = segment.first_position + row + 1;
    if (++head == group) {
      head = 0;
      ++row;
    }
  }
}

// Some of them, within a split.
template <int kQueries>
struct Tile {
  const float* query[kQueries];
  size_t positions[kQueries];  // of the split, at least 1, never falling
  float* scores;               // [kQueries, kSplitTokens]
  float* results;              // [kQueries, result_floats]
  size_t result_floats;
};

template <class V, KvType kType, int kQueries, int kGroups>
MILLRACE_KERNEL_INLINE void ScoreGroups(const Split<V>& split, const Tile<kQueries>& tile, size_t group,
                                        float scale) {
  V acc[kQueries][kGroups];
  for (int q = 0; q < kQueries; ++q) {
    for (int g = 0; g < kGroups; ++g) acc[q][g] = V::Set1(0);
  }
  for (size_t d = 0; d < split.head_size; ++d) {
    V key[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      key[g] = LoadKv<V, kType>(split.keys[group + g] + d * kKeyGroupTokens * kKvBytes<kType>);
    }
    for (int q = 0; q < kQueries; ++q) {
      const V query = V::Set1(tile.query[q][d]);
      for (int g = 0; g < kGroups; ++g) acc[q][g] = Fma(query, key[g], acc[q][g]);
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    for (int q = 0; q < kQueries; ++q) {
      V score = acc[q][g];
      if constexpr (kType == KvType::kI8) score = Mul(score, V::Load(split.key_scales[group + g]));
      Mul(score, V::Set1(scale)).Store(tile.scores + q * kSplitTokens + (group + g) * kKeyGroupTokens);
    }
  }
}

// Scores of `positions` positions become the factors of the values, 0 up to the next multiple of 16; their
// largest and the sum of their exponentials go to max_sum[0] and [1].
template <class V, KvType kType>
inline void Softmax(const Split<V>& split, size_t positions, float* scores, float* max_sum) {
  const size_t whole = positions / kVecLanes;
  const size_t tail = positions % kVecLanes;
  float* last = scores + whole * kVecLanes;
  V most = V::Set1(-__builtin_inff());
  for (size_t g = 0; g < whole; ++g) most = Max(most, V::Load(scores + g * kVecLanes));
  if (tail != 0) most = Max(most, KeepFirst(V::Load(last), tail, most));
  max_sum[0] = V::ReduceMax(most);
  const V max = V::Set1(max_sum[0]);
  V sum = V::Set1(0);
  for (size_t g = 0; g < whole; ++g) {
    V e = Exp(Sub(V::Load(scores + g * kVecLanes), max));
    sum = Add(sum, e);
    if constexpr (kType == KvType::kI8) e = Mul(e, V::Load(split.value_scales[g]));
    e.Store(scores + g * kVecLanes);
  }
  if (tail != 0) {
    V e = KeepFirst(Exp(Sub(V::Load(last), max)), tail, V::Set1(0));
    sum = Add(sum, e);
    if constexpr (kType == KvType::kI8) e = Mul(e, V::Load(split.value_scales[whole]));
    e.Store(last);
  }
  max_sum[1] = V::ReduceAdd(sum);
}

// acc[q][v] += factor * value over positions [begin, end) of the split, for the kVectors vectors of the head
// from `dim` on; the last vector has `last_lanes` lanes. `factors` has kSplitTokens floats a query.
template <class V, KvType kType, int kQueries, int kVectors, bool kPartialLast>
MILLRACE_KERNEL_INLINE void AddValues(const Split<V>& split, const float* factors, size_t begin, size_t end,
                                      size_t dim, size_t last_lanes, V (*acc)[kVectors]) {
  constexpr size_t kBytes = kKvBytes<kType>;
  const size_t row_bytes = split.head_size * kBytes;
  for (size_t position = begin; position < end;) {
    const size_t group = position / kKeyGroupTokens;
    const size_t group_end = (group + 1) * kKeyGroupTokens < end ? (group + 1) * kKeyGroupTokens : end;
    const uint8_t* values = split.values[group] + position % kKeyGroupTokens * row_bytes + dim * kBytes;
    for (; position < group_end; ++position, values += row_bytes) {
      V value[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* from = values + v * kVecLanes * kBytes;
        const bool cut = kPartialLast && v == kVectors - 1;
        value[v] = cut ? LoadKvPartial<V, kType>(from, last_lanes) : LoadKv<V, kType>(from);
      }
      for (int q = 0; q < kQueries; ++q) {
        const V factor = V::Set1(factors[q * kSplitTokens + position]);
        for (int v = 0; v < kVectors; ++v) acc[q][v] = Fma(factor, value[v], acc[q][v]);
      }
    }
  }
}

// The weighted values of the tile from `dim` on. The positions that all queries attend to are added together,
// the few at the end that only later rows see one query at a time.
template <class V, KvType kType, int kQueries, int kVectors, bool kPartialLast>
inline void SumValues(const Split<V>& split, const Tile<kQueries>& tile, size_t dim, size_t last_lanes) {
  const size_t common = tile.positions[0];
  V acc[kQueries][kVectors];
  for (int q = 0; q < kQueries; ++q) {
    for (int v = 0; v < kVectors; ++v) acc[q][v] = V::Set1(0);
  }
  AddValues<V, kType, kQueries, kVectors, kPartialLast>(split, tile.scores, 0, common, dim, last_lanes, acc);
  for (int q = 0; q < kQueries; ++q) {
    if (tile.positions[q] > common) {
      AddValues<V, kType, 1, kVectors, kPartialLast>(split, tile.scores + q * kSplitTokens, common,
                                                     tile.positions[q], dim, last_lanes, acc + q);
    }
    float* result = tile.results + q * tile.result_floats + dim;
    for (int v = 0; v < kVectors; ++v) acc[q][v].Store(result + v * kVecLanes);
  }
}

template <class V, KvType kType, int kQueries>
inline void AttendTile(const Split<V>& split, const Tile<kQueries>& tile, float scale) {
  constexpr int kVectors = V::Part::kAttentionVectors;
  const size_t groups = (tile.positions[kQueries - 1] + kKeyGroupTokens - 1) / kKeyGroupTokens;
  size_t group = 0;
  for (; groups - group >= kVectors; group += kVectors) {
    ScoreGroups<V, kType, kQueries, kVectors>(split, tile, group, scale);
  }
  for (; group < groups; ++group) ScoreGroups<V, kType, kQueries, 1>(split, tile, group, scale);
  for (int q = 0; q < kQueries; ++q) {
    Softmax<V, kType>(split, tile.positions[q], tile.scores + q * kSplitTokens,
                      tile.results + (q + 1) * tile.result_floats - kVecLanes);
  }
  const size_t head_size = split.head_size;
  size_t dim = 0;
  for (; head_size - dim >= kVectors * kVecLanes; dim += kVectors * kVecLanes) {
    SumValues<V, kType, kQueries, kVectors, false>(split, tile, dim, kVecLanes);
  }
  for (; head_size - dim >= kVecLanes; dim += kVecLanes) {
    SumValues<V, kType, kQueries, 1, false>(split, tile, dim, kVecLanes);
  }
  if (dim < head_size) SumValues<V, kType, kQueries, 1, true>(split, tile, dim, head_size - dim);
}

// Queries [first, first + count), all of which attend to some of the split; count in 1 .. kQueries.
template <class V, KvType kType, int kQueries>
inline void AttendTileOf(const Split<V>& split, const ItemQueries<V>& queries, size_t first, size_t count,
                         const Tile<kQueries>& buffers, float scale) {
  if (count < kQueries) {
    if constexpr (kQueries > 1) {
      const Tile<kQueries - 1> fewer = {{}, {}, buffers.scores, buffers.results, buffers.result_floats};
      AttendTileOf<V, kType, kQueries - 1>(split, queries, first, count, fewer, scale);
    }
    return;
  }
  Tile<kQueries> tile = buffers;
  for (int q = 0; q < kQueries; ++q) {
    const size_t rest = queries.length[first + q] - split.begin;
    tile.query[q] = queries.query[first + q];
    tile.positions[q] = rest < kSplitTokens ? rest : kSplitTokens;
  }
  AttendTile<V, kType, kQueries>(split, tile, scale);
}

// The first query that attends to positions behind `begin`.
template <class V>
inline size_t FirstBehind(const ItemQueries<V>& queries, size_t begin) {
  size_t q = queries.count;
  while (q > 0 && queries.length[q - 1] > begin) --q;
  return q;
}

// result and more: each [.. values .., max, sum], as a rising split joins those before it.
template <class V>
inline void Merge(float* result, const float* more, size_t result_floats) {
  const size_t values = result_floats - kVecLanes;
  const float max = result[values], max_more = more[values];
  const float most = max > max_more ? max : max_more;
  const V a = Exp(V::Set1(max - most));
  const V b = Exp(V::Set1(max_more - most));
  for (size_t i = 0; i < values; i += kVecLanes) {
    Fma(V::Load(result + i), a, Mul(V::Load(more + i), b)).Store(result + i);
  }
  const V sum = Fma(V::Set1(result[values + 1]), a, Mul(V::Set1(more[values + 1]), b));
  sum.StorePartial(result + values + 1, 1);
  result[values] = most;
}

template <class V>
inline void Finish(const float* result, size_t result_floats, size_t head_size, float* out) {
  const V scale = V::Set1(1.0f / result[result_floats - kVecLanes + 1]);
  size_t i = 0;
  for (; head_size - i >= kVecLanes; i += kVecLanes) Mul(V::Load(result + i), scale).Store(out + i);
  if (i < head_size)
    Mul(V::LoadPartial(result + i, head_size - i), scale).StorePartial(out + i, head_size - i);
}

// Every split of an item, one after another.
template <class V, KvType kType>
inline void AttendItem(const PagedAttentionArgs& args, const AttentionItem& item,
                       const AttentionScratch& scratch, size_t share) {
  constexpr int kTile = V::Part::kAttentionQueries;
  static_assert(kTile <= static_cast<int>(kMaxAttentionQueries));
  const KvSegment& segment = args.segments.data()[item.segment];
  const size_t stride = scratch.result_floats;
  float* states = scratch.states(share);
  ItemQueries<V> queries;
  FindQueries(args, segment, item, &queries);
  Split<V> split;
  for (size_t number = 0; number * kSplitTokens < item.positions; ++number) {
    FindSplit<V, kType>(args.kv, segment.block_ids, item, number, &split);
    for (size_t q = FirstBehind(queries, split.begin); q < queries.count;) {
      const size_t count = queries.count - q < kTile ? queries.count - q : kTile;
      float* fresh = number == 0 ? states + q * stride : scratch.fresh(share);
      const Tile<kTile> buffers = {{}, {}, scratch.scores(share), fresh, stride};
      AttendTileOf<V, kType, kTile>(split, queries, q, count, buffers, args.scale);
      for (size_t i = 0; number > 0 && i < count; ++i) {
        Merge<V>(states + (q + i) * stride, fresh + i * stride, stride);
      }
      q += count;
    }
  }
  for (size_t q = 0; q < queries.count; ++q) {
    Finish<V>(states + q * stride, stride, args.kv.head_size, queries.out[q]);
  }
}

template <class V>
void PagedAttention(const PagedAttentionArgs& args, WorkShare share) {
  const AttentionScratch scratch(args, share.count);
  SharedItems items(args, share);
  for (AttentionItem item; items.Next(&item);) {
    switch (args.kv.type) {
      case KvType::kF32:
        AttendItem<V, KvType::kF32>(args, item, scratch, share.index);
        break;
      case KvType::kF16:
        AttendItem<V, KvType::kF16>(args, item, scratch, share.index);
        break;
      case KvType::kI8:
        AttendItem<V, KvType::kI8>(args, item, scratch, share.index);
        break;
    }
  }
}

// Splits of an item, each for itself; the results wait for AttentionMerge.
template <class V, KvType kType>
inline void AttendPart(const PagedAttentionArgs& args, const AttentionPart& part,
                       const AttentionScratch& scratch, size_t share) {
  constexpr int kTile = V::Part::kAttentionQueries;
  const KvSegment& segment = args.segments.data()[part.item.segment];
  const size_t stride = scratch.result_floats;
  ItemQueries<V> queries;
  FindQueries(args, segment, part.item, &queries);
  Split<V> split;
  float* results = scratch.waiting() + part.slot * stride;
  for (size_t number = part.begin; number < part.end; ++number, results += queries.count * stride) {
    FindSplit<V, kType>(args.kv, segment.block_ids, part.item, number, &split);
    for (size_t q = FirstBehind(queries, split.begin); q < queries.count;) {
      const size_t count = queries.count - q < kTile ? queries.count - q : kTile;
      const Tile<kTile> buffers = {{}, {}, scratch.scores(share), results + q * stride, stride};
      AttendTileOf<V, kType, kTile>(split, queries, q, count, buffers, args.scale);
      q += count;
    }
  }
}

template <class V>
void AttentionSplits(const AttentionRound& round, WorkShare share) {
  const AttentionScratch scratch(*round.args, round.shares);
  SharedParts parts(round, share);
  for (AttentionPart part; parts.Next(&part);) {
    switch (round.args->kv.type) {
      case KvType::kF32:
        AttendPart<V, KvType::kF32>(*round.args, part, scratch, share.index);
        break;
      case KvType::kF16:
        AttendPart<V, KvType::kF16>(*round.args, part, scratch, share.index);
        break;
      case KvType::kI8:
        AttendPart<V, KvType::kI8>(*round.args, part, scratch, share.index);
        break;
    }
  }
}

// Shares are of queries, counted over the items. A query that goes on in the next round leaves its state
// open.
template <class V>
void AttentionMerge(const AttentionRound& round, WorkShare share) {
  const PagedAttentionArgs& args = *round.args;
  const AttentionScratch scratch(args, round.shares);
  const size_t stride = scratch.result_floats;
  RoundParts parts(round);
  size_t counted = 0;
  for (AttentionPart part; parts.Next(&part);) {
    ItemQueries<V> queries;
    FindQueries(args, args.segments.data()[part.item.segment], part.item, &queries);
    float* waiting = scratch.waiting() + part.slot * stride;
    for (size_t q = FirstBehind(queries, part.begin * kSplitTokens); q < queries.count; ++q) {
      if (counted++ % share.count != share.index) continue;
      const size_t own = (queries.length[q] + kSplitTokens - 1) / kSplitTokens;
      const size_t end = own < part.end ? own : part.end;
      float* result = part.begin == 0 ? waiting + q * stride : scratch.open(round.number) + q * stride;
      for (size_t s = part.begin == 0 ? 1 : part.begin; s < end; ++s) {
        Merge<V>(result, waiting + ((s - part.begin) * queries.count + q) * stride, stride);
      }
      if (own <= part.end) {
        Finish<V>(result, stride, args.kv.head_size, queries.out[q]);
      } else {
        float* open = scratch.open(round.number + 1) + q * stride;
        for (size_t i = 0; i < stride; i += kVecLanes) V::Load(result + i).Store(open + i);
      }
    }
  }
}

}  // namespace millrace::kernels::cpu
