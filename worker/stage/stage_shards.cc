#include "worker/stage/stage_shards.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/work_share.h"
#include "worker/stage/rope_table.h"
#include "worker/stage/weight_loader.h"

namespace millrace {
namespace {

// Rows whose partial sums are added together: few enough that they are still in the caches.
constexpr uint32_t kReduceRows = 128;

SegmentSpan SpanOf(std::vector<uint32_t> ends, const ShardRange& own, size_t all) {
  return {std::move(ends), own.begin, static_cast<uint32_t>(all)};
}

}  // namespace

StageShards::StageShards(const HyperParameters& hyper_parameters,
                         absl::Span<const kernels::Backend* const> backends)
    : model_(hyper_parameters), team_(static_cast<uint32_t>(backends.size())) {}

absl::StatusOr<std::unique_ptr<StageShards>> StageShards::Create(
    const GgufFile& file, const HyperParameters& hyper_parameters,
    absl::Span<const kernels::Backend* const> backends, const StageModelOptions& options) {
  ASSIGN_OR_RETURN(const ShardLayout cut,
                   CutShards(ReadShardShape(file, hyper_parameters), static_cast<uint32_t>(backends.size())));
  std::unique_ptr<StageShards> stage(new StageShards(hyper_parameters, backends));
  stage->ViewWeights(file, cut, options.layout, backends);
  RETURN_IF_ERROR(stage->AllocateShared(backends, options, cut));
  std::vector<ShardToLoad> to_load;
  for (size_t i = 0; i < backends.size(); ++i) {
    Shard& shard = *stage->shards_[i];
    to_load.push_back({backends[i], &shard.weights, &shard.packed, &shard.mapped_bytes});
  }
  WeightLoader loader(file, std::move(to_load), options.progress);
  RETURN_IF_ERROR(loader.Allocate());
  const Activations::Sizes sizes{{}, options.max_rows};
  stage->team_.Run([&](uint32_t index) {
    Shard& shard = *stage->shards_[index];
    // The thread of shard 0 is the caller's to pin.
    if (index > 0) shard.context.backend->PinCaller();
    Activations::Sizes own = sizes;
    own.slice = shard.context.slice;
    absl::StatusOr<Activations> activations =
        Activations::Allocate(hyper_parameters, *shard.context.backend, own);
    shard.status = activations.status();
    if (!activations.ok()) return;
    shard.activations = *std::move(activations);
    loader.Load(index);
  });
  for (const std::unique_ptr<Shard>& shard : stage->shards_) RETURN_IF_ERROR(shard->status);
  loader.Finish();
  return stage;
}

void StageShards::ViewWeights(const GgufFile& file, const ShardLayout& cut, const StageLayout& layout,
                              absl::Span<const kernels::Backend* const> backends) {
  for (size_t i = 0; i < backends.size(); ++i) {
    shards_.push_back(std::make_unique<Shard>());
    Shard& shard = *shards_.back();
    ShardContext& context = shard.context;
    context.model = &model_;
    context.rope_table = &rope_table_;
    context.backend = backends[i];
    context.slice = cut.shards[i];
    context.attention =
        SpanOf(cut.AttentionEnds(context.slice), context.slice.attention_segments, cut.attention_ends.size());
    context.ffn = SpanOf(cut.FfnEnds(context.slice), context.slice.ffn_segments, cut.ffn_ends.size());
    shard.weights = ViewStageWeights(file, model_, layout, context.slice);
  }
}

absl::Status StageShards::AllocateShared(absl::Span<const kernels::Backend* const> backends,
                                         const StageModelOptions& options, const ShardLayout& cut) {
  ASSIGN_OR_RETURN(rope_table_,
                   MakeRopeTable(model_, shards_.front()->weights.rope_freqs, options.context_tokens));
  if (backends.size() == 1) return absl::OkStatus();
  SharedMemoryGroupOptions group;
  group.segments = static_cast<uint32_t>(std::max(cut.attention_ends.size(), cut.ffn_ends.size()));
  group.max_rows = std::min(options.max_rows, kReduceRows);
  group.columns = model_.hidden_size;
  ASSIGN_OR_RETURN(group_, SharedMemoryGroup::Create(backends, group));
  for (size_t i = 0; i < shards_.size(); ++i) shards_[i]->context.collective = &group_->shard(i);
  return absl::OkStatus();
}

void StageShards::Embed(const StageBatch& batch, float* residual) {
  const size_t rows = batch.rows();
  team_.Run([&](uint32_t index) {
    Shard& shard = *shards_[index];
    shard.activations.Enter(batch, residual);
    const kernels::WorkShare::Range own = kernels::WorkShare{index, shards_.size()}.Of(rows);
    kernels::EmbedArgs embed;
    embed.ids = shard.activations.token_ids.data() + own.begin;
    embed.rows = own.end - own.begin;
    embed.table = shard.weights.token_embedding;
    embed.out = residual + own.begin * model_.hidden_size;
    shard.context.backend->Embed(embed);
  });
}

void StageShards::RunLayers(const LayerRange& range, const StageBatch& batch, float* residual,
                            KvCache& cache) {
  team_.Run([&](uint32_t index) {
    Shard& shard = *shards_[index];
    shard.activations.Enter(batch, residual);
    TransformerLayer layer(shard.context, shard.activations);
    for (uint32_t i = 0; i < range.layers; ++i) {
      layer.Run(shard.weights.layers[range.first_layer + i], cache.Layer(range.first_kv_layer + i, index),
                batch);
    }
    shard.activations.residual = nullptr;
  });
}

void StageShards::Logits(absl::Span<const uint32_t> rows, const float* residual, float* logits) {
  MILLRACE_CHECK(rows.size() <= max_rows());
  team_.Run([&](uint32_t index) { ShardLogits(*shards_[index], rows, residual, logits); });
}

void StageShards::ShardLogits(Shard& shard, absl::Span<const uint32_t> rows, const float* residual,
                              float* logits) {
  if (shard.weights.output.rows == 0) return;
  const kernels::Backend& backend = *shard.context.backend;
  Activations& a = shard.activations;
  kernels::RmsNormArgs norm;
  norm.weight = shard.weights.output_norm.data();
  norm.rows = 1;
  norm.columns = model_.hidden_size;
  norm.epsilon = model_.rms_epsilon;
  for (size_t i = 0; i < rows.size(); ++i) {
    norm.x = residual + size_t{rows[i]} * model_.hidden_size;
    norm.out = a.normed.data() + i * model_.hidden_size;
    backend.RmsNorm(norm);
  }
  kernels::PrepareInputArgs prepare;
  prepare.x = a.normed.data();
  prepare.rows = rows.size();
  prepare.columns = model_.hidden_size;
  prepare.rounding = kernels::InputRounding::kRefineLargest;
  prepare.buffer = reinterpret_cast<uint8_t*>(a.prepared.data());
  kernels::MatMulArgs product;
  product.x = backend.PrepareInput(prepare);
  product.weights = shard.weights.output;
  product.out = logits + shard.context.slice.vocabulary.begin;
  product.out_stride = model_.vocabulary_size;
  product.scratch = a.scratch.data();
  backend.MatMul(product);
}

std::vector<ShardUse> StageShards::uses() const {
  std::vector<ShardUse> uses;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    ShardUse& use = uses.emplace_back();
    use.kv_heads = shard->context.slice.kv_heads.size();
    use.weight_bytes = shard->packed.bytes() + shard->mapped_bytes;
    use.activation_bytes = shard->activations.bytes() + shard->weights.copied_bytes();
  }
  return uses;
}

uint64_t StageShards::shared_bytes() const {
  return rope_table_.bytes() + (group_ == nullptr ? 0 : group_->bytes());
}

int64_t StageShards::collective_ns() const {
  return group_ == nullptr ? 0 : group_->shard(0).spent_ns();
}

double StageShards::layer_elements() const {
  double elements = 0;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    for (const LayerWeights& layer : shard->weights.layers) {
      for (const kernels::WeightMatrix* matrix :
           {&layer.attn_q, &layer.attn_k, &layer.attn_v, &layer.attn_output, &layer.ffn_gate, &layer.ffn_up,
            &layer.ffn_down}) {
        elements += static_cast<double>(matrix->rows) * static_cast<double>(matrix->columns);
      }
    }
  }
  return elements / static_cast<double>(shards_.front()->weights.layers.size());
}

}  // namespace millrace
