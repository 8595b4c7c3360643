// One layer of a Llama model: pre-norm grouped-query attention with rotary positions, then a SwiGLU
// feed-forward network, each added to the residual stream. Touvron et al., arXiv 2302.13971.
//
// A tensor-parallel shard runs its heads and its FFN columns; what they add to the residual stream is summed
// over all shards, segment by segment (shard_layout.h).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/backend.h"
#include "model/hyper_parameters.h"
#include "worker/device/collective.h"
#include "worker/device/device.h"
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
  const float* rope_table = nullptr;  // in the device's memory
  Device* device = nullptr;
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
      : shard_(shard), shape_(*shard.model), backend_(shard.device->ops()), a_(activations) {}

  // Adds one layer to the rows of activations.residual and stores the shard's keys and values in `kv`. Errors
  // of Collective::AllReduce. REQUIRES: activations.Place.
  absl::Status Run(const LayerWeights& weights, const kernels::PagedKv& kv);

 private:
  // The input of a row-parallel product: rows [begin, begin + count).
  using PrepareRows = absl::FunctionRef<kernels::MatMulInput(size_t begin, size_t count)>;

  absl::Status Attention(const LayerWeights& weights, const kernels::PagedKv& kv);
  void RotateAndStore(const kernels::PagedKv& kv);
  void Attend(const kernels::PagedKv& kv);
  absl::Status FeedForward(const LayerWeights& weights);

  kernels::MatMulInput NormAndPrepare(const float* weight);  // of residual
  kernels::PrepareInputArgs InputArgs(const float* x, size_t columns, size_t rows,
                                      kernels::InputRounding rounding);
  kernels::MatMulArgs Product(const kernels::MatMulInput& x, const kernels::WeightMatrix& weights,
                              float* out);
  kernels::RopeArgs Rotation(FloatBuffer& heads, uint32_t num_heads);
  // To residual.
  absl::Status AddProduct(PrepareRows prepare, const kernels::WeightMatrix& weights,
                          const SegmentSpan& segments);

  const ShardContext& shard_;
  const HyperParameters& shape_;
  const kernels::Backend& backend_;
  Activations& a_;
};

}  // namespace millrace
