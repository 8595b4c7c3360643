#include "worker/stage/transformer_layer.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace millrace {

void TransformerLayer::Run(const LayerWeights& weights, const kernels::PagedKv& kv, const StageBatch& batch) {
  Attention(weights, kv, batch);
  FeedForward(weights, batch.rows());
}

void TransformerLayer::Attention(const LayerWeights& weights, const kernels::PagedKv& kv,
                                 const StageBatch& batch) {
  const size_t rows = batch.rows();
  Norm(weights.attn_norm, rows);
  const kernels::MatMulInput normed =
      Prepare(a_.normed.data(), shape_.hidden_size, rows, kernels::InputRounding::kRefineLargest);
  Multiply(normed, weights.attn_q, a_.queries);
  Multiply(normed, weights.attn_k, a_.keys);
  Multiply(normed, weights.attn_v, a_.values);
  Rotate(a_.queries, shard_.slice.heads.size(), rows);
  Rotate(a_.keys, shard_.slice.kv_heads.size(), rows);
  Attend(kv);
  AddProduct(a_.attended, weights.attn_output, shard_.attention, rows);
}

void TransformerLayer::Attend(const kernels::PagedKv& kv) {
  kernels::StoreKvArgs store;
  store.kv = kv;
  store.keys = a_.keys.data();
  store.values = a_.values.data();
  store.segments = a_.segments;
  backend_.StoreKv(store);

  kernels::PagedAttentionArgs attention;
  attention.kv = kv;
  attention.queries = a_.queries.data();
  attention.out = a_.attended.data();
  attention.segments = a_.segments;
  attention.heads = shard_.slice.heads.size();
  attention.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_size));
  attention.scratch = a_.scratch.data();
  backend_.PagedAttention(attention);
}

void TransformerLayer::FeedForward(const LayerWeights& weights, size_t rows) {
  Norm(weights.ffn_norm, rows);
  const kernels::MatMulInput normed =
      Prepare(a_.normed.data(), shape_.hidden_size, rows, kernels::InputRounding::kRefineLargest);
  Multiply(normed, weights.ffn_gate, a_.gate);
  Multiply(normed, weights.ffn_up, a_.up);
  kernels::SwiGluArgs swiglu;
  swiglu.gate = a_.gate.data();
  swiglu.up = a_.up.data();
  swiglu.out = a_.gate.data();
  swiglu.count = rows * shard_.slice.ffn.size();
  backend_.SwiGlu(swiglu);
  AddProduct(a_.gate, weights.ffn_down, shard_.ffn, rows);
}

void TransformerLayer::Norm(const std::vector<float>& weight, size_t rows) {
  kernels::RmsNormArgs norm;
  norm.x = a_.residual;
  norm.weight = weight.data();
  norm.out = a_.normed.data();
  norm.rows = rows;
  norm.columns = shape_.hidden_size;
  norm.epsilon = shape_.rms_epsilon;
  backend_.RmsNorm(norm);
}

kernels::MatMulInput TransformerLayer::Prepare(const float* x, size_t columns, size_t rows,
                                               kernels::InputRounding rounding) {
  kernels::PrepareInputArgs prepare;
  prepare.x = x;
  prepare.rows = rows;
  prepare.columns = columns;
  prepare.buffer = reinterpret_cast<uint8_t*>(a_.prepared.data());
  prepare.rounding = rounding;
  return backend_.PrepareInput(prepare);
}

void TransformerLayer::Multiply(const kernels::MatMulInput& x, const kernels::WeightMatrix& weights,
                                FloatBuffer& out) {
  kernels::MatMulArgs product;
  product.x = x;
  product.weights = weights;
  product.out = out.data();
  product.scratch = a_.scratch.data();
  backend_.MatMul(product);
}

void TransformerLayer::AddProduct(const FloatBuffer& x, const kernels::WeightMatrix& weights,
                                  const SegmentSpan& segments, size_t rows) {
  if (shard_.collective != nullptr) return ReduceProduct(x, weights, segments, rows);
  kernels::MatMulArgs product;
  product.x = Prepare(x.data(), weights.columns, rows, kernels::InputRounding::kPlain);
  product.weights = weights;
  product.out = a_.residual;
  product.store = kernels::MatMulStore::kAdd;
  product.segment_ends = segments.ends;
  product.scratch = a_.scratch.data();
  backend_.MatMul(product);
}

void TransformerLayer::ReduceProduct(const FloatBuffer& x, const kernels::WeightMatrix& weights,
                                     const SegmentSpan& segments, size_t rows) {
  Collective& collective = *shard_.collective;
  const size_t step = collective.max_rows();
  for (size_t begin = 0; begin < rows; begin += step) {
    const size_t count = std::min(step, rows - begin);
    kernels::MatMulArgs product;
    product.x =
        Prepare(x.data() + begin * weights.columns, weights.columns, count, kernels::InputRounding::kPlain);
    product.weights = weights;
    product.out = collective.Partial(segments.first);
    product.store = kernels::MatMulStore::kPartials;
    product.segment_ends = segments.ends;
    product.partial_stride = collective.partial_stride();
    product.scratch = a_.scratch.data();
    backend_.MatMul(product);
    // Nothing here can fail, so nobody aborts.
    MILLRACE_CHECK(
        collective
            .AllReduce({a_.residual + begin * shape_.hidden_size, count, shape_.hidden_size, segments.all})
            .ok());
  }
}

void TransformerLayer::Rotate(FloatBuffer& heads, uint32_t num_heads, size_t rows) {
  kernels::RopeArgs rope;
  rope.x = heads.data();
  rope.positions = a_.positions.data();
  rope.rows = rows;
  rope.heads = num_heads;
  rope.head_size = shape_.head_size;
  rope.rope_dims = shape_.rope_dims;
  rope.cos_sin = shard_.rope_table->data();
  backend_.Rope(rope);
}

}  // namespace millrace
