#include "worker/stage/transformer_layer.h"

#include <cmath>

namespace millrace {

void TransformerLayer::Run(const LayerWeights& weights, const kernels::PagedKv& kv, const StageBatch& batch) {
  Attention(weights, kv, batch);
  FeedForward(weights, batch.rows());
}

void TransformerLayer::Attention(const LayerWeights& weights, const kernels::PagedKv& kv,
                                 const StageBatch& batch) {
  const size_t rows = batch.rows();
  Norm(weights.attn_norm, rows);
  Multiply(a_.normed, weights.attn_q, rows, a_.queries);
  Multiply(a_.normed, weights.attn_k, rows, a_.keys);
  Multiply(a_.normed, weights.attn_v, rows, a_.values);
  Rotate(a_.queries, shape_.num_heads, rows);
  Rotate(a_.keys, shape_.num_kv_heads, rows);
  Attend(kv);
  AddProduct(a_.attended, weights.attn_output, rows);
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
  attention.heads = shape_.num_heads;
  attention.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_size));
  attention.scratch = a_.scratch.data();
  backend_.PagedAttention(attention);
}

void TransformerLayer::FeedForward(const LayerWeights& weights, size_t rows) {
  Norm(weights.ffn_norm, rows);
  Multiply(a_.normed, weights.ffn_gate, rows, a_.gate);
  Multiply(a_.normed, weights.ffn_up, rows, a_.up);
  kernels::SwiGluArgs swiglu;
  swiglu.gate = a_.gate.data();
  swiglu.up = a_.up.data();
  swiglu.out = a_.gate.data();
  swiglu.count = rows * shape_.ffn_size;
  backend_.SwiGlu(swiglu);
  AddProduct(a_.gate, weights.ffn_down, rows);
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

kernels::MatMulInput TransformerLayer::Prepared(const FloatBuffer& x, size_t columns, size_t rows) {
  kernels::PrepareInputArgs prepare;
  prepare.x = x.data();
  prepare.rows = rows;
  prepare.columns = columns;
  return backend_.PrepareInput(prepare);
}

void TransformerLayer::Multiply(const FloatBuffer& x, const kernels::WeightMatrix& weights, size_t rows,
                                FloatBuffer& out) {
  kernels::MatMulArgs product;
  product.x = Prepared(x, weights.columns, rows);
  product.weights = weights;
  product.out = out.data();
  product.scratch = a_.scratch.data();
  backend_.MatMul(product);
}

void TransformerLayer::AddProduct(const FloatBuffer& x, const kernels::WeightMatrix& weights, size_t rows) {
  kernels::MatMulArgs product;
  product.x = Prepared(x, weights.columns, rows);
  product.weights = weights;
  product.out = a_.residual;
  product.store = kernels::MatMulStore::kAdd;
  product.scratch = a_.scratch.data();
  backend_.MatMul(product);
}

void TransformerLayer::Rotate(FloatBuffer& heads, uint32_t num_heads, size_t rows) {
  kernels::RopeArgs rope;
  rope.x = heads.data();
  rope.positions = a_.positions.data();
  rope.rows = rows;
  rope.heads = num_heads;
  rope.head_size = shape_.head_size;
  rope.rope_dims = shape_.rope_dims;
  rope.cos_sin = rope_table_.data();
  backend_.Rope(rope);
}

}  // namespace millrace
