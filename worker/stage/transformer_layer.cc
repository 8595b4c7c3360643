#include "worker/stage/transformer_layer.h"

#include <algorithm>
#include <cmath>

#include "common/status_macros.h"

namespace millrace {

absl::Status TransformerLayer::Run(const LayerWeights& weights, const kernels::PagedKv& kv) {
  RETURN_IF_ERROR(Attention(weights, kv));
  return FeedForward(weights);
}

absl::Status TransformerLayer::Attention(const LayerWeights& weights, const kernels::PagedKv& kv) {
  const kernels::MatMulInput normed = NormAndPrepare(weights.attn_norm.data);
  const kernels::MatMulArgs products[] = {Product(normed, weights.attn_q, a_.queries.data()),
                                          Product(normed, weights.attn_k, a_.keys.data()),
                                          Product(normed, weights.attn_v, a_.values.data())};
  backend_.MatMulAll(products);
  RotateAndStore(kv);
  Attend(kv);
  const size_t columns = weights.attn_output.columns;
  const auto prepare = [&](size_t begin, size_t count) {
    return backend_.PrepareInput(
        InputArgs(a_.attended.data() + begin * columns, columns, count, kernels::InputRounding::kPlain));
  };
  return AddProduct(prepare, weights.attn_output, shard_.attention);
}

void TransformerLayer::RotateAndStore(const kernels::PagedKv& kv) {
  kernels::RopeAndStoreKvArgs args;
  args.queries = Rotation(a_.queries, shard_.slice.heads.size());
  args.keys = Rotation(a_.keys, shard_.slice.kv_heads.size());
  args.store.kv = kv;
  args.store.keys = a_.keys.data();
  args.store.values = a_.values.data();
  args.store.segments = a_.rows.segments;
  args.store.tables = a_.rows.tables;
  args.store.rows = a_.rows.rows;
  backend_.RopeAndStoreKv(args);
}

void TransformerLayer::Attend(const kernels::PagedKv& kv) {
  kernels::PagedAttentionArgs attention;
  attention.kv = kv;
  attention.queries = a_.queries.data();
  attention.out = a_.attended.data();
  attention.segments = a_.rows.segments;
  attention.tables = a_.rows.tables;
  attention.rows = a_.rows.rows;
  attention.heads = shard_.slice.heads.size();
  attention.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_size));
  attention.scratch = a_.scratch.data();
  backend_.PagedAttention(attention);
}

absl::Status TransformerLayer::FeedForward(const LayerWeights& weights) {
  const kernels::MatMulInput normed = NormAndPrepare(weights.ffn_norm.data);
  const kernels::MatMulArgs products[] = {Product(normed, weights.ffn_gate, a_.gate.data()),
                                          Product(normed, weights.ffn_up, a_.up.data())};
  backend_.MatMulAll(products);
  const size_t columns = weights.ffn_down.columns;
  const auto prepare = [&](size_t begin, size_t count) {
    kernels::SwiGluAndPrepareArgs args;
    args.swiglu.gate = a_.gate.data() + begin * columns;
    args.swiglu.up = a_.up.data() + begin * columns;
    args.swiglu.out = a_.gate.data() + begin * columns;
    args.swiglu.count = count * columns;
    args.prepare = InputArgs(args.swiglu.out, columns, count, kernels::InputRounding::kPlain);
    return backend_.SwiGluAndPrepare(args);
  };
  return AddProduct(prepare, weights.ffn_down, shard_.ffn);
}

kernels::MatMulInput TransformerLayer::NormAndPrepare(const float* weight) {
  kernels::NormAndPrepareArgs args;
  args.norm.x = a_.residual;
  args.norm.weight = weight;
  args.norm.out = a_.normed.data();
  args.norm.rows = a_.rows.rows;
  args.norm.columns = shape_.hidden_size;
  args.norm.epsilon = shape_.rms_epsilon;
  args.prepare =
      InputArgs(a_.normed.data(), shape_.hidden_size, a_.rows.rows, kernels::InputRounding::kRefineLargest);
  return backend_.NormAndPrepare(args);
}

kernels::PrepareInputArgs TransformerLayer::InputArgs(const float* x, size_t columns, size_t rows,
                                                      kernels::InputRounding rounding) {
  kernels::PrepareInputArgs prepare;
  prepare.x = x;
  prepare.rows = rows;
  prepare.columns = columns;
  prepare.buffer = reinterpret_cast<uint8_t*>(a_.prepared.data());
  prepare.rounding = rounding;
  return prepare;
}

kernels::MatMulArgs TransformerLayer::Product(const kernels::MatMulInput& x,
                                              const kernels::WeightMatrix& weights, float* out) {
  kernels::MatMulArgs product;
  product.x = x;
  product.weights = weights;
  product.out = out;
  product.scratch = a_.scratch.data();
  return product;
}

kernels::RopeArgs TransformerLayer::Rotation(FloatBuffer& heads, uint32_t num_heads) {
  kernels::RopeArgs rope;
  rope.x = heads.data();
  rope.positions = a_.rows.positions;
  rope.rows = a_.rows.rows;
  rope.heads = num_heads;
  rope.head_size = shape_.head_size;
  rope.rope_dims = shape_.rope_dims;
  rope.cos_sin = shard_.rope_table;
  return rope;
}

absl::Status TransformerLayer::AddProduct(PrepareRows prepare, const kernels::WeightMatrix& weights,
                                          const SegmentSpan& segments) {
  const size_t rows = a_.rows.rows;
  if (shard_.collective == nullptr) {
    kernels::MatMulArgs product = Product(prepare(0, rows), weights, a_.residual);
    product.store = kernels::MatMulStore::kAdd;
    product.segment_ends = segments.ends;
    backend_.MatMul(product);
    return absl::OkStatus();
  }
  Collective& collective = *shard_.collective;
  const size_t step = collective.max_rows();
  for (size_t begin = 0; begin < rows; begin += step) {
    const size_t count = std::min(step, rows - begin);
    kernels::MatMulArgs product = Product(prepare(begin, count), weights, collective.Partial(segments.first));
    product.store = kernels::MatMulStore::kPartials;
    product.segment_ends = segments.ends;
    product.partial_stride = collective.partial_stride();
    backend_.MatMul(product);
    RETURN_IF_ERROR(collective.AllReduce(
        {a_.residual + begin * shape_.hidden_size, count, shape_.hidden_size, segments.all}));
  }
  return absl::OkStatus();
}

}  // namespace millrace
