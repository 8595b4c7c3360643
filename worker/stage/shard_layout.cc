#include "worker/stage/shard_layout.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace millrace {
namespace {

// Where nothing else says: a cache line of floats.
constexpr uint32_t kFfnUnit = 16;
constexpr uint32_t kVocabularyUnit = 16;

uint32_t CeilDivide(uint32_t n, uint32_t unit) {
  return (n + unit - 1) / unit;
}

// Part `index` of `parts` of so many units, each `unit` of `total` long, the last perhaps shorter.
ShardRange Part(uint32_t total, uint32_t unit, uint32_t index, uint32_t parts) {
  const uint64_t units = CeilDivide(total, unit);
  const auto at = [&](uint64_t i) {
    return static_cast<uint32_t>(std::min<uint64_t>(units * i / parts * unit, total));
  };
  return {at(index), at(uint64_t{index} + 1)};
}

std::vector<uint32_t> SegmentEnds(uint32_t total, uint32_t unit) {
  const uint32_t segments = std::min(kMaxSegments, CeilDivide(total, unit));
  std::vector<uint32_t> ends;
  for (uint32_t i = 0; i < segments; ++i) ends.push_back(Part(total, unit, i, segments).end);
  return ends;
}

// Columns of attention output that may not be separated: whole KV groups that end with a weight block.
uint32_t AttentionUnit(const ShardShape& shape) {
  const uint32_t group = shape.num_heads / shape.num_kv_heads * shape.head_size;
  return group / std::gcd(group, shape.attention_block) * shape.attention_block;
}

uint32_t FfnUnit(const ShardShape& shape) {
  return std::max(shape.ffn_block, kFfnUnit);
}

ShardRange Columns(const std::vector<uint32_t>& ends, const ShardRange& segments) {
  return {segments.begin == 0 ? 0 : ends[segments.begin - 1], ends[segments.end - 1]};
}

std::vector<uint32_t> EndsOf(const std::vector<uint32_t>& ends, const ShardRange& segments) {
  const uint32_t first = Columns(ends, segments).begin;
  std::vector<uint32_t> result;
  for (uint32_t i = segments.begin; i < segments.end; ++i) result.push_back(ends[i] - first);
  return result;
}

ShardSlice MakeSlice(const ShardShape& shape, const ShardLayout& layout, uint32_t index, uint32_t shards) {
  const auto run = [&](const std::vector<uint32_t>& ends) {
    return Part(static_cast<uint32_t>(ends.size()), 1, index, shards);
  };
  ShardSlice slice;
  slice.attention_segments = run(layout.attention_ends);
  slice.ffn_segments = run(layout.ffn_ends);
  const ShardRange columns = Columns(layout.attention_ends, slice.attention_segments);
  const uint32_t group_heads = shape.num_heads / shape.num_kv_heads;
  slice.heads = {columns.begin / shape.head_size, columns.end / shape.head_size};
  slice.kv_heads = {slice.heads.begin / group_heads, slice.heads.end / group_heads};
  slice.ffn = Columns(layout.ffn_ends, slice.ffn_segments);
  slice.vocabulary = Part(shape.vocabulary_size, kVocabularyUnit, index, shards);
  return slice;
}

}  // namespace

ShardSlice ShardLayout::Whole() const {
  ShardSlice all = shards.front();
  const ShardSlice& last = shards.back();
  all.heads.end = last.heads.end;
  all.kv_heads.end = last.kv_heads.end;
  all.ffn.end = last.ffn.end;
  all.vocabulary.end = last.vocabulary.end;
  all.attention_segments.end = last.attention_segments.end;
  all.ffn_segments.end = last.ffn_segments.end;
  return all;
}

std::vector<uint32_t> ShardLayout::AttentionEnds(const ShardSlice& slice) const {
  return EndsOf(attention_ends, slice.attention_segments);
}

std::vector<uint32_t> ShardLayout::FfnEnds(const ShardSlice& slice) const {
  return EndsOf(ffn_ends, slice.ffn_segments);
}

ShardShape ReadShardShape(const GgufFile& file, const HyperParameters& hyper_parameters) {
  ShardShape shape;
  shape.num_heads = hyper_parameters.num_heads;
  shape.num_kv_heads = hyper_parameters.num_kv_heads;
  shape.head_size = hyper_parameters.head_size;
  shape.ffn_size = hyper_parameters.ffn_size;
  shape.vocabulary_size = hyper_parameters.vocabulary_size;
  for (uint32_t i = 0; i < hyper_parameters.num_layers; ++i) {
    const LayerTensors layer = FindLayerTensors(file, i);
    shape.attention_block = std::max(shape.attention_block, LayoutOf(layer.attn_output->type).elements);
    shape.ffn_block = std::max(shape.ffn_block, LayoutOf(layer.ffn_down->type).elements);
  }
  return shape;
}

absl::StatusOr<ShardLayout> CutShards(const ShardShape& shape, uint32_t shards) {
  ShardLayout layout;
  layout.attention_ends = SegmentEnds(shape.num_heads * shape.head_size, AttentionUnit(shape));
  layout.ffn_ends = SegmentEnds(shape.ffn_size, FfnUnit(shape));
  const auto most = static_cast<uint32_t>(std::min(layout.attention_ends.size(), layout.ffn_ends.size()));
  if (shards == 0 || shards > most) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor-parallel ", shards, ": this model can be cut into 1 to ", most, " shards; its attention has ",
        layout.attention_ends.size(), " parts (", shape.num_kv_heads, " KV heads, weight blocks of ",
        shape.attention_block, " columns), its FFN ", layout.ffn_ends.size()));
  }
  for (uint32_t i = 0; i < shards; ++i) layout.shards.push_back(MakeSlice(shape, layout, i, shards));
  return layout;
}

}  // namespace millrace
