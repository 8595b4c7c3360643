// One layer of a Llama model: pre-norm grouped-query attention with rotary positions, then a SwiGLU
// feed-forward network, each added to the residual stream. Touvron et al., arXiv 2302.13971.
//
// A tensor-parallel shard runs its heads and its FFN columns; what they add to the residual stream is summed
// over all shards, segment by segment (shard_layout.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "model/hyper_parameters.h"
#include "worker/device/collective.h"
#include "worker/stage/activations.h"
#include "worker/stage/float_buffer.h"
#include "worker/stage/shard_layout.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_weights.h"

namespace millrace {

// Segments of one row-parallel product.
struct SegmentSpan {
  std::vector<uint32_t> ends;  // of the shard's own, counted from its first column
  uint32_t first = 0;          // the shard's first segment among all
  uint32_t all = 0;            // segments of all shards
};

// What a shard runs layers with. What it points to outlives it.
struct ShardContext {
  const HyperParameters* model = nullptr;
  const FloatBuffer* rope_table = nullptr;
  const kernels::Backend* backend = nullptr;
  Collective* collective = nullptr;  // null: there is one shard
  ShardSlice slice;
  SegmentSpan attention;
  SegmentSpan ffn;
};

// Runs layers over one set of activations. Stateless beside them; what it points to outlives it. Thread: the
// shard's; every shard of a stage makes the same calls.
class TransformerLayer {
 public:
  TransformerLayer(const ShardContext& shard, Activations& activations)
      : shard_(shard), shape_(*shard.model), backend_(*shard.backend), a_(activations) {}

  // Adds one layer to the first batch.rows() rows of activations.residual and stores the shard's keys and
  // values in `kv`. REQUIRES: activations.Enter(batch).
  void Run(const LayerWeights& weights, const kernels::PagedKv& kv, const StageBatch& batch);

 private:
  void Attention(const LayerWeights& weights, const kernels::PagedKv& kv, const StageBatch& batch);
  void Attend(const kernels::PagedKv& kv);
  void FeedForward(const LayerWeights& weights, size_t rows);

  void Norm(const std::vector<float>& weight, size_t rows);  // residual to normed
  kernels::MatMulInput Prepare(const float* x, size_t columns, size_t rows, kernels::InputRounding rounding);
  void Multiply(const kernels::MatMulInput& x, const kernels::WeightMatrix& weights, FloatBuffer& out);
  // To residual.
  void AddProduct(const FloatBuffer& x, const kernels::WeightMatrix& weights, const SegmentSpan& segments,
                  size_t rows);
  void ReduceProduct(const FloatBuffer& x, const kernels::WeightMatrix& weights, const SegmentSpan& segments,
                     size_t rows);
  void Rotate(FloatBuffer& heads, uint32_t num_heads, size_t rows);

  const ShardContext& shard_;
  const HyperParameters& shape_;
  const kernels::Backend& backend_;
  Activations& a_;
};

}  // namespace millrace
