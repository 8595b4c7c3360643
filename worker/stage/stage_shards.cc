#include "worker/stage/stage_shards.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/work_share.h"
#include "worker/stage/decode_buckets.h"
#include "worker/stage/device_floats.h"
#include "worker/stage/rope_table.h"

namespace millrace {
namespace {

// Rows whose partial sums are added together: on the host few enough that they are still in the caches, on
// other devices enough that a collective's fixed cost does not count.
constexpr uint32_t kReduceRows = 128;
constexpr uint32_t kDeviceReduceRows = 512;

SegmentSpan SpanOf(std::vector<uint32_t> ends, const ShardRange& own, size_t all) {
  return {std::move(ends), own.begin, static_cast<uint32_t>(all)};
}

bool OnlyDecodes(const StageBatch& batch) {
  return std::all_of(batch.segments.begin(), batch.segments.end(),
                     [](const StageSegment& segment) { return segment.token_ids.size() == 1; });
}

}  // namespace

StageShards::StageShards(const HyperParameters& hyper_parameters, DeviceGroup& devices,
                         const StageModelOptions& options)
    : model_(hyper_parameters), devices_(devices), options_(options), team_(devices.size()) {}

absl::StatusOr<std::unique_ptr<StageShards>> StageShards::Create(const GgufFile& file,
                                                                 const HyperParameters& hyper_parameters,
                                                                 DeviceGroup& devices,
                                                                 const StageModelOptions& options) {
  ASSIGN_OR_RETURN(const ShardLayout cut, CutShards(ReadShardShape(file, hyper_parameters), devices.size()));
  std::unique_ptr<StageShards> stage(new StageShards(hyper_parameters, devices, options));
  stage->ViewWeights(file, cut);
  RETURN_IF_ERROR(stage->AllocateShared(cut));
  std::vector<ShardToLoad> to_load;
  for (const std::unique_ptr<Shard>& shard : stage->shards_) {
    to_load.push_back({shard->context.device, &shard->weights, &shard->packed, &shard->mapped_bytes});
  }
  WeightLoader loader(file, std::move(to_load), options.progress);
  RETURN_IF_ERROR(loader.Allocate());
  RETURN_IF_ERROR(stage->PrepareSampling());
  RETURN_IF_ERROR(stage->LoadShards(loader));
  loader.Finish();
  if (!stage->on_host()) RETURN_IF_ERROR(stage->WarmUp());
  return stage;
}

void StageShards::ViewWeights(const GgufFile& file, const ShardLayout& cut) {
  for (uint32_t i = 0; i < devices_.size(); ++i) {
    shards_.push_back(std::make_unique<Shard>());
    Shard& shard = *shards_.back();
    ShardContext& context = shard.context;
    context.model = &model_;
    context.device = &devices_.device(i);
    context.slice = cut.shards[i];
    context.attention =
        SpanOf(cut.AttentionEnds(context.slice), context.slice.attention_segments, cut.attention_ends.size());
    context.ffn = SpanOf(cut.FfnEnds(context.slice), context.slice.ffn_segments, cut.ffn_ends.size());
    shard.weights = ViewStageWeights(file, model_, options_.layout, context.slice);
  }
}

absl::Status StageShards::AllocateShared(const ShardLayout& cut) {
  ASSIGN_OR_RETURN(rope_table_, MakeRopeTable(model_, shards_.front()->weights.rope_freqs.values,
                                              options_.context_tokens));
  for (const std::unique_ptr<Shard>& shard : shards_) shard->context.rope_table = rope_table_.data();
  if (!on_host()) {
    for (FloatBuffer* staging : {&residual_in_, &residual_out_}) {
      ASSIGN_OR_RETURN(*staging, FloatBuffer::AllocateStaging(devices_.device(0), "residual stream to copy",
                                                              {options_.max_rows, model_.hidden_size}));
    }
  }
  if (shards_.size() == 1) return absl::OkStatus();
  CollectiveOptions group;
  group.segments = static_cast<uint32_t>(std::max(cut.attention_ends.size(), cut.ffn_ends.size()));
  group.max_rows = std::min(options_.max_rows, on_host() ? kReduceRows : kDeviceReduceRows);
  group.columns = model_.hidden_size;
  ASSIGN_OR_RETURN(group_, devices_.MakeCollectives(group));
  for (size_t i = 0; i < shards_.size(); ++i) shards_[i]->context.collective = &group_->shard(i);
  return absl::OkStatus();
}

absl::Status StageShards::LoadShards(WeightLoader& loader) {
  return InShards([&](uint32_t index, Shard& shard) {
    // The thread of shard 0 is the caller's to pin.
    if (on_host() && index > 0) shard.context.device->Enter();
    RETURN_IF_ERROR(PrepareShard(shard));
    return loader.Load(index);
  });
}

absl::Status StageShards::PrepareShard(Shard& shard) {
  Device& device = *shard.context.device;
  const Activations::Sizes sizes{shard.context.slice, options_.max_rows, options_.context_tokens,
                                 options_.block_tokens};
  ASSIGN_OR_RETURN(shard.activations, Activations::Allocate(model_, device, sizes));
  if (device.on_host()) return absl::OkStatus();
  const uint64_t vocabulary = shard.weights.output.rows;
  if (vocabulary != 0) {
    ASSIGN_OR_RETURN(shard.logits, FloatBuffer::Allocate(device, "logits", {kMaxLogitRows, vocabulary}));
    ASSIGN_OR_RETURN(shard.logits_staging,
                     FloatBuffer::AllocateStaging(device, "logits", {kMaxLogitRows, vocabulary}));
  }
  return CopyFloatsOf(shard);
}

absl::Status StageShards::CopyFloatsOf(Shard& shard) {
  std::vector<FloatsToCopy> floats;
  for (FloatTensor* norm : shard.weights.Norms()) floats.push_back({norm->values, &norm->data});
  floats.push_back({absl::MakeConstSpan(rope_table_.data(), rope_table_.size()), &shard.context.rope_table});
  ASSIGN_OR_RETURN(shard.floats, CopyFloats(*shard.context.device, "norms and RoPE table", floats));
  return absl::OkStatus();
}

absl::Status StageShards::InShards(absl::FunctionRef<absl::Status(uint32_t, Shard&)> work) {
  team_.Run([&](uint32_t index) {
    Shard& shard = *shards_[index];
    if (!shard.context.device->on_host()) shard.context.device->Enter();
    shard.status = work(index, shard);
    // The others may wait for this one.
    if (!shard.status.ok() && shard.context.collective != nullptr) shard.context.collective->Abort();
  });
  absl::Status first;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    if (first.ok() || absl::IsAborted(first)) first = shard->status.ok() ? first : shard->status;
  }
  return first;
}

// `sequences` of `rows` rows each, all of which have block 0 for all their blocks.
StageBatch StageShards::EmptyBatch(uint32_t sequences, uint32_t rows) const {
  StageBatch batch;
  for (uint32_t i = 0; i < sequences; ++i) {
    StageSegment& segment = batch.segments.emplace_back();
    segment.token_ids.assign(rows, 0);
    segment.block_ids.assign((rows + options_.block_tokens - 1) / options_.block_tokens, 0);
  }
  return batch;
}

// What the first microbatch would find unloaded, or not yet allocated, is so before anyone asks what memory
// is free.
absl::Status StageShards::WarmUp() {
  KvCache::Shape shape;
  shape.num_layers = options_.layout.num_layers;
  shape.num_blocks = 1;
  shape.block_tokens = options_.block_tokens;
  shape.kv_heads = model_.num_kv_heads;
  shape.head_size = model_.head_size;
  shape.type = options_.kv_type;
  for (const ShardUse& use : uses()) shape.shard_kv_heads.push_back(use.kv_heads);
  ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache, KvCache::Create(shape, devices_));
  const uint32_t rows = std::min(options_.max_rows, options_.context_tokens);
  const StageBatch batch = EmptyBatch(std::max(options_.max_rows / rows, 1u), rows);
  std::vector<float> residual(size_t{batch.rows()} * model_.hidden_size, 0.0f);
  RETURN_IF_ERROR(RunLayers({0, options_.layout.num_layers, 0}, batch, residual.data(), *cache));
  RETURN_IF_ERROR(Record(*cache));
  if (!options_.layout.last) return absl::OkStatus();
  std::vector<float> logits(size_t{kMaxLogitRows} * model_.vocabulary_size);
  std::vector<uint32_t> all(std::min(kMaxLogitRows, batch.rows()));
  for (uint32_t i = 0; i < all.size(); ++i) all[i] = i;
  return Logits(all, residual.data(), logits.data());
}

absl::Status StageShards::Record(KvCache& cache) {
  if (on_host()) return absl::OkStatus();
  recordings_.clear();
  recorded_cache_ = cache.id();
  if (!options_.record_decodes) return absl::OkStatus();
  for (uint32_t rows : DecodeBuckets(options_.max_rows)) {
    RETURN_IF_ERROR(RecordBucket(rows, cache));
    if (recordings_.empty()) break;
  }
  return absl::OkStatus();
}

// A first run loads what recording must find loaded.
absl::Status StageShards::RecordBucket(uint32_t rows, KvCache& cache) {
  const LayerRange all{0, options_.layout.num_layers, 0};
  const StageBatch batch = EmptyBatch(rows, 1);
  std::vector<float> residual(size_t{rows} * model_.hidden_size, 0.0f);
  RETURN_IF_ERROR(RunLayers(all, batch, residual.data(), cache));
  Recording recording{rows, {}};
  recording.work.resize(shards_.size());
  RETURN_IF_ERROR(InShards([&](uint32_t index, Shard& shard) -> absl::Status {
    ASSIGN_OR_RETURN(recording.work[index],
                     shard.context.device->Capture([&] { return EnqueueLayers(index, all, cache); }));
    return absl::OkStatus();
  }));
  const bool recorded = std::all_of(recording.work.begin(), recording.work.end(),
                                    [](const auto& work) { return work != nullptr; });
  if (recorded) recordings_.push_back(std::move(recording));
  return absl::OkStatus();
}

const StageShards::Recording* StageShards::RecordingOf(const LayerRange& range, const StageBatch& batch,
                                                       const KvCache& cache) const {
  if (recordings_.empty() || cache.id() != recorded_cache_ || range.first_layer != 0 ||
      range.first_kv_layer != 0 || range.layers != options_.layout.num_layers || !OnlyDecodes(batch)) {
    return nullptr;
  }
  for (const Recording& recording : recordings_) {
    if (batch.rows() <= recording.rows) return &recording;
  }
  return nullptr;
}

void StageShards::Embed(const StageBatch& batch, float* residual) {
  const size_t rows = batch.rows();
  kernels::EmbedArgs embed;
  embed.table = shards_.front()->weights.token_embedding;
  if (!on_host()) {
    Activations& activations = shards_.front()->activations;
    activations.Enter(batch);
    embed.ids = activations.token_ids.data();
    embed.rows = rows;
    embed.out = residual;
    return devices_.host_ops().Embed(embed);
  }
  team_.Run([&](uint32_t index) {
    Shard& shard = *shards_[index];
    shard.activations.Enter(batch);
    const kernels::WorkShare::Range own = kernels::WorkShare{index, shards_.size()}.Of(rows);
    kernels::EmbedArgs part = embed;
    part.ids = shard.activations.token_ids.data() + own.begin;
    part.rows = own.end - own.begin;
    part.out = residual + own.begin * model_.hidden_size;
    shard.context.device->ops().Embed(part);
  });
}

absl::Status StageShards::RunLayers(const LayerRange& range, const StageBatch& batch, float* residual,
                                    KvCache& cache) {
  const size_t bytes = size_t{batch.rows()} * model_.hidden_size * sizeof(float);
  microbatch_ = batch.id.value();
  if (!on_host()) {
    MILLRACE_CHECK(batch.rows() <= max_rows() && cache.shape().block_tokens == options_.block_tokens);
    std::memcpy(residual_in_.data(), residual, bytes);
  }
  RETURN_IF_ERROR(
      InShards([&](uint32_t index, Shard&) { return RunShard(index, range, batch, residual, cache); }));
  if (!on_host()) std::memcpy(residual, residual_out_.data(), bytes);
  return absl::OkStatus();
}

absl::Status StageShards::RunShard(uint32_t index, const LayerRange& range, const StageBatch& batch,
                                   float* residual, KvCache& cache) {
  Shard& shard = *shards_[index];
  Device& device = *shard.context.device;
  Activations& a = shard.activations;
  a.Enter(batch);
  if (on_host()) {
    a.Place(device.ops(), batch.rows(), residual);
    const absl::Status status = EnqueueLayers(index, range, cache);
    a.residual = nullptr;
    return status;
  }
  device.Begin({options_.stage, microbatch_});
  const uint64_t bytes = uint64_t{batch.rows()} * model_.hidden_size * sizeof(float);
  device.CopyIn(a.own_residual.data(), residual_in_.data(), bytes);
  const Recording* recording = RecordingOf(range, batch, cache);
  a.Place(device.ops(), recording != nullptr ? recording->rows : batch.rows(), a.own_residual.data());
  if (recording != nullptr) {
    device.Replay(*recording->work[index]);
    if (index == 0) replays_.store(replays() + 1, std::memory_order_relaxed);
  } else {
    RETURN_IF_ERROR(EnqueueLayers(index, range, cache));
  }
  if (index == 0) device.CopyOut(residual_out_.data(), a.own_residual.data(), bytes);
  return device.Finish();
}

absl::Status StageShards::EnqueueLayers(uint32_t index, const LayerRange& range, KvCache& cache) {
  Shard& shard = *shards_[index];
  TransformerLayer layer(shard.context, shard.activations);
  for (uint32_t i = 0; i < range.layers; ++i) {
    RETURN_IF_ERROR(
        layer.Run(shard.weights.layers[range.first_layer + i], cache.Layer(range.first_kv_layer + i, index)));
  }
  return absl::OkStatus();
}

absl::Status StageShards::Logits(absl::Span<const uint32_t> rows, const float* residual, float* logits) {
  MILLRACE_CHECK(rows.size() <= kMaxLogitRows && rows.size() <= max_rows());
  return InShards([&](uint32_t, Shard& shard) { return ShardLogits(shard, rows, residual, logits); });
}

// Neighbouring rows together.
void StageShards::NormRows(Shard& shard, absl::Span<const uint32_t> rows, const float* residual) {
  kernels::RmsNormArgs norm;
  norm.weight = shard.weights.output_norm.data;
  norm.columns = model_.hidden_size;
  norm.epsilon = model_.rms_epsilon;
  for (size_t begin = 0; begin < rows.size(); begin += norm.rows) {
    norm.rows = 1;
    while (begin + norm.rows < rows.size() && rows[begin + norm.rows] == rows[begin] + norm.rows) ++norm.rows;
    norm.x = residual + size_t{rows[begin]} * model_.hidden_size;
    norm.out = shard.activations.normed.data() + begin * model_.hidden_size;
    shard.context.device->ops().RmsNorm(norm);
  }
}

void StageShards::EnqueueLogits(Shard& shard, absl::Span<const uint32_t> rows, const float* residual,
                                LogitsPlace to) {
  const kernels::Backend& ops = shard.context.device->ops();
  Activations& a = shard.activations;
  NormRows(shard, rows, residual);
  kernels::PrepareInputArgs prepare;
  prepare.x = a.normed.data();
  prepare.rows = rows.size();
  prepare.columns = model_.hidden_size;
  prepare.rounding = kernels::InputRounding::kRefineLargest;
  prepare.buffer = reinterpret_cast<uint8_t*>(a.prepared.data());
  kernels::MatMulArgs product;
  product.x = ops.PrepareInput(prepare);
  product.weights = shard.weights.output;
  product.out = to.begin;
  product.out_stride = to.stride;
  product.scratch = a.scratch.data();
  ops.MatMul(product);
}

absl::Status StageShards::ShardLogits(Shard& shard, absl::Span<const uint32_t> rows, const float* residual,
                                      float* logits) {
  const size_t own = shard.weights.output.rows;
  if (own == 0) return absl::OkStatus();
  Device& device = *shard.context.device;
  float* const to = logits + shard.context.slice.vocabulary.begin;
  device.Begin({options_.stage, microbatch_});
  if (device.on_host()) {
    EnqueueLogits(shard, rows, residual, {to, model_.vocabulary_size});
    return absl::OkStatus();
  }
  EnqueueLogits(shard, rows, shard.activations.own_residual.data(), {shard.logits.data(), own});
  device.CopyOut(shard.logits_staging.data(), shard.logits.data(), rows.size() * own * sizeof(float));
  RETURN_IF_ERROR(device.Finish());
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(shard.logits_staging.data() + i * own, own, to + i * model_.vocabulary_size);
  }
  return absl::OkStatus();
}

absl::Status StageShards::PrepareSampling() {
  Device& device = devices_.device(0);
  const size_t bytes = device.ops().SampleBytes(kMaxQuestions, model_.vocabulary_size);
  if (on_host() || !options_.layout.last || bytes == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(sampling_.buffer, device.Allocate("sampling", bytes));
  ASSIGN_OR_RETURN(sampling_.staging,
                   device.AllocateStaging("sampling", device.ops().SampleStagingBytes(kMaxQuestions)));
  ASSIGN_OR_RETURN(sampling_.results,
                   device.AllocateStaging("sampling", kMaxQuestions * sizeof(kernels::SampleResult)));
  ASSIGN_OR_RETURN(sampling_.logits, FloatBuffer::Allocate(device, "logits to sample from",
                                                           {kMaxLogitRows, model_.vocabulary_size}));
  return absl::OkStatus();
}

// Shard 0 makes its part where it is needed; others send theirs there.
absl::Status StageShards::LogitsToSample(uint32_t index, absl::Span<const uint32_t> rows) {
  Shard& shard = *shards_[index];
  const size_t own = shard.weights.output.rows;
  if (own == 0) return absl::OkStatus();
  Device& device = *shard.context.device;
  const float* const residual = shard.activations.own_residual.data();
  const LogitsPlace to{sampling_.logits.data() + shard.context.slice.vocabulary.begin,
                       model_.vocabulary_size};
  device.Begin({options_.stage, microbatch_});
  if (index == 0) {
    EnqueueLogits(shard, rows, residual, to);
    if (shards_.size() == 1) return absl::OkStatus();  // sampling follows in the same queue
  } else {
    EnqueueLogits(shard, rows, residual, {shard.logits.data(), own});
    device.CopyRows({to.begin, to.stride * sizeof(float), shard.logits.data(), own * sizeof(float),
                     own * sizeof(float), rows.size()});
  }
  return device.Finish();
}

absl::StatusOr<const kernels::SampleResult*> StageShards::Sample(absl::Span<const uint32_t> rows,
                                                                 absl::Span<const kernels::SampleRow> asked) {
  MILLRACE_CHECK(samples() && rows.size() <= kMaxLogitRows && rows.size() <= max_rows() &&
                 asked.size() <= kMaxQuestions);
  RETURN_IF_ERROR(InShards([&](uint32_t index, Shard&) { return LogitsToSample(index, rows); }));
  Device& device = devices_.device(0);
  kernels::SampleArgs args;
  args.logits = sampling_.logits.data();
  args.vocabulary = model_.vocabulary_size;
  args.rows = asked;
  args.max_rows = kMaxQuestions;
  args.buffer = sampling_.buffer.data();
  args.staging = sampling_.staging.data();
  args.results = reinterpret_cast<kernels::SampleResult*>(sampling_.results.data());
  device.Begin({options_.stage, microbatch_});
  device.ops().Sample(args);
  RETURN_IF_ERROR(device.Finish());
  return args.results;
}

std::vector<ShardUse> StageShards::uses() const {
  std::vector<ShardUse> uses;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    ShardUse& use = uses.emplace_back();
    use.kv_heads = shard->context.slice.kv_heads.size();
    use.weight_bytes = shard->packed.bytes() + shard->mapped_bytes;
    use.activation_bytes = shard->activations.bytes() + shard->weights.copied_bytes() +
                           shard->floats.bytes() + shard->logits.bytes();
  }
  return uses;
}

uint64_t StageShards::shared_bytes() const {
  return rope_table_.bytes() + residual_in_.bytes() + residual_out_.bytes() + sampling_.logits.bytes() +
         sampling_.buffer.bytes() + (group_ == nullptr ? 0 : group_->bytes());
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
