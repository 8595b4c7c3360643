// Which part of each layer a tensor-parallel shard has, and where the sums of a layer are cut.
//
// Column-parallel products (queries, keys, values, gate, up, logits) are cut by output rows: no sum is split.
// Row-parallel ones (attention output, FFN down; Shoeybi et al., arXiv 1909.08053) are summed in segments of
// columns that are the same for every number of shards: a shard has a run of whole segments, and adding all
// segments in rising order gives the bits that a single shard gives.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"

namespace millrace {

// Segments of one row-parallel product, and so the most shards that there can be.
inline constexpr uint32_t kMaxSegments = 12;

// What decides how a model can be cut.
struct ShardShape {
  uint32_t num_heads = 0;  // a multiple of num_kv_heads
  uint32_t num_kv_heads = 0;
  uint32_t head_size = 0;
  uint32_t ffn_size = 0;
  uint32_t vocabulary_size = 0;
  // Elements of a weight block along the columns: the most of all layers of the model, so that a cut fits
  // every layer and does not depend on which layers a stage has. Each of them divides the larger ones.
  uint32_t attention_block = 1;  // of attention output
  uint32_t ffn_block = 1;        // of FFN down
};

struct ShardRange {
  uint32_t begin = 0;
  uint32_t end = 0;
  uint32_t size() const { return end - begin; }
  bool operator==(const ShardRange&) const = default;
};

// Part of a model: one shard's, or all of it.
struct ShardSlice {
  ShardRange heads;     // query heads: those of kv_heads
  ShardRange kv_heads;  // at least 1
  ShardRange ffn;       // FFN columns, at least 1
  ShardRange vocabulary;
  ShardRange attention_segments;  // of ShardLayout.attention_ends
  ShardRange ffn_segments;        // of ShardLayout.ffn_ends
};

struct ShardLayout {
  // Where segments end, rising: in columns of attention output, the last num_heads * head_size, and of FFN
  // down, the last ffn_size.
  std::vector<uint32_t> attention_ends;
  std::vector<uint32_t> ffn_ends;
  std::vector<ShardSlice> shards;  // in order, without gaps

  ShardSlice Whole() const;
  // The ends of a slice's segments, counted from the slice's first column.
  std::vector<uint32_t> AttentionEnds(const ShardSlice& slice) const;
  std::vector<uint32_t> FfnEnds(const ShardSlice& slice) const;
};

// REQUIRES: ReadHyperParameters(file) was OK.
ShardShape ReadShardShape(const GgufFile& file, const HyperParameters& hyper_parameters);

// INVALID_ARGUMENT: `shards` is 0 or more than the model can be cut into (the message says how many it can
// be, and why).
absl::StatusOr<ShardLayout> CutShards(const ShardShape& shape, uint32_t shards);

}  // namespace millrace
