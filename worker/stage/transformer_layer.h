// One layer of a Llama model: pre-norm grouped-query attention with rotary positions, then a SwiGLU
// feed-forward network, each added to the residual stream. Touvron et al., arXiv 2302.13971.
#pragma once

#include "kernels/backend.h"
#include "model/hyper_parameters.h"
#include "worker/stage/activations.h"
#include "worker/stage/float_buffer.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_weights.h"

namespace millrace {

// Runs layers over one set of activations. Stateless beside them; what it points to outlives it. Thread:
// compute.
class TransformerLayer {
 public:
  TransformerLayer(const HyperParameters& hyper_parameters, const FloatBuffer& rope_table,
                   const kernels::Backend& backend, Activations& activations)
      : shape_(hyper_parameters), rope_table_(rope_table), backend_(backend), a_(activations) {}

  // Adds one layer to the first batch.rows() rows of activations.residual and stores their keys and values in
  // `kv`. REQUIRES: activations.Enter(batch).
  void Run(const LayerWeights& weights, const kernels::PagedKv& kv, const StageBatch& batch);

 private:
  void Attention(const LayerWeights& weights, const kernels::PagedKv& kv, const StageBatch& batch);
  void Attend(const kernels::PagedKv& kv);
  void FeedForward(const LayerWeights& weights, size_t rows);

  void Norm(const std::vector<float>& weight, size_t rows);  // residual to normed
  kernels::MatMulInput Prepared(const FloatBuffer& x, size_t columns, size_t rows);
  void Multiply(const FloatBuffer& x, const kernels::WeightMatrix& weights, size_t rows, FloatBuffer& out);
  void AddProduct(const FloatBuffer& x, const kernels::WeightMatrix& weights, size_t rows);  // to residual
  void Rotate(FloatBuffer& heads, uint32_t num_heads, size_t rows);

  const HyperParameters& shape_;
  const FloatBuffer& rope_table_;
  const kernels::Backend& backend_;
  Activations& a_;
};

}  // namespace millrace
