#include "worker/stage/stage_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/stage/output_head.h"
#include "worker/stage/stage_shards.h"

namespace millrace {
namespace {

// More than the first stage ever has on their way to a neighbour that keeps up.
constexpr size_t kIdleResiduals = 16;

absl::Status CheckLayout(const StageLayout& layout, const HyperParameters& hyper_parameters) {
  const uint64_t end = uint64_t{layout.first_layer} + layout.num_layers;
  if (layout.num_layers == 0 || end > hyper_parameters.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat("stage: ", layout.num_layers, " layers from layer ",
                                                   layout.first_layer, "; must be at least 1 of the model's ",
                                                   hyper_parameters.num_layers));
  }
  if (layout.first != (layout.first_layer == 0) || layout.last != (end == hyper_parameters.num_layers)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stage: layers ", layout.first_layer, " to ", end - 1, " of ", hyper_parameters.num_layers,
        " are said to be ", layout.first ? "" : "not ", "first and ", layout.last ? "" : "not ",
        "last; the first stage has layer 0, the last has the last layer"));
  }
  return absl::OkStatus();
}

absl::Status CheckSizes(uint32_t max_rows, uint32_t context_tokens, const HyperParameters& hyper_parameters) {
  if (max_rows == 0) return absl::InvalidArgumentError("stage: max_rows is 0; must be at least 1");
  if (context_tokens == 0 || context_tokens > hyper_parameters.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("stage: context of ", context_tokens,
                                                   " tokens; must be 1 to the model's ",
                                                   hyper_parameters.context_tokens));
  }
  return absl::OkStatus();
}

}  // namespace

struct StageModel::Impl {
  HyperParameters hyper_parameters;
  StageLayout layout;
  uint32_t max_rows;
  uint32_t context_tokens;
  std::unique_ptr<StageShards> shards;
  std::vector<uint32_t> shard_kv_heads;
  std::unique_ptr<OutputHead> output_head;  // last stage only
  BufferPool residuals;                     // first stage only

  size_t ResidualBytes(uint64_t rows) const { return rows * hyper_parameters.hidden_size * sizeof(float); }
  void CheckCache(const KvCache& cache) const;
};

absl::StatusOr<std::unique_ptr<StageModel>> StageModel::Create(const GgufFile& file,
                                                               const HyperParameters& hyper_parameters,
                                                               DeviceGroup& devices,
                                                               const StageModelOptions& options) {
  const StageLayout& layout = options.layout;
  RETURN_IF_ERROR(CheckLayout(layout, hyper_parameters));
  RETURN_IF_ERROR(CheckSizes(options.max_rows, options.context_tokens, hyper_parameters));
  std::unique_ptr<Impl> impl(new Impl{hyper_parameters,
                                      layout,
                                      options.max_rows,
                                      options.context_tokens,
                                      {},
                                      {},
                                      {},
                                      BufferPool(kIdleResiduals)});
  ASSIGN_OR_RETURN(impl->shards, StageShards::Create(file, impl->hyper_parameters, devices, options));
  for (const ShardUse& use : impl->shards->uses()) impl->shard_kv_heads.push_back(use.kv_heads);
  if (layout.last) {
    ASSIGN_OR_RETURN(impl->output_head, OutputHead::Create(impl->hyper_parameters, *impl->shards));
  }
  if (layout.first) {
    // Touches the pages, so that the first microbatch does not.
    const std::shared_ptr<PooledBuffer> residual = impl->residuals.Get(impl->ResidualBytes(options.max_rows));
    std::memset(residual->data, 0, residual->size);
  }
  return std::unique_ptr<StageModel>(new StageModel(std::move(impl)));
}

StageModel::StageModel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StageModel::~StageModel() = default;

void StageModel::Impl::CheckCache(const KvCache& cache) const {
  const KvCache::Shape& shape = cache.shape();
  MILLRACE_CHECK(shape.num_layers == layout.num_layers);
  MILLRACE_CHECK(shape.kv_heads == hyper_parameters.num_kv_heads &&
                 shape.head_size == hyper_parameters.head_size);
  MILLRACE_CHECK(shape.shard_kv_heads == shard_kv_heads ||
                 (shape.shard_kv_heads.empty() && shard_kv_heads.size() == 1));
}

absl::Status StageModel::Prepare(KvCache& cache) {
  impl_->CheckCache(cache);
  return impl_->shards->Record(cache);
}

absl::StatusOr<std::shared_ptr<PooledBuffer>> StageModel::Run(const StageBatch& batch,
                                                              std::shared_ptr<PooledBuffer> input,
                                                              KvCache& cache) {
  impl_->CheckCache(cache);
  for (const StageSegment& segment : batch.segments) {
    MILLRACE_CHECK(segment.first_position + segment.token_ids.size() <= impl_->context_tokens);
  }
  const size_t rows = batch.rows();
  std::shared_ptr<PooledBuffer> residual = std::move(input);
  MILLRACE_CHECK((residual == nullptr) == impl_->layout.first);
  if (impl_->layout.first) residual = impl_->residuals.Get(impl_->ResidualBytes(rows));
  MILLRACE_CHECK(residual->size == impl_->ResidualBytes(rows));
  if (impl_->layout.first) impl_->shards->Embed(batch, residual->floats());
  RETURN_IF_ERROR(
      impl_->shards->RunLayers({0, impl_->layout.num_layers, 0}, batch, residual->floats(), cache));
  return residual;
}

absl::StatusOr<std::vector<SequenceResult>> StageModel::Sample(const StageBatch& batch,
                                                               const PooledBuffer& residual) {
  MILLRACE_CHECK(impl_->output_head != nullptr && residual.size == impl_->ResidualBytes(batch.rows()));
  return impl_->output_head->Sample(batch, absl::MakeConstSpan(residual.floats(), residual.num_floats()));
}

absl::StatusOr<absl::Span<const float>> StageModel::Logits(uint32_t row, const PooledBuffer& residual) {
  MILLRACE_CHECK(impl_->output_head != nullptr);
  return impl_->output_head->Logits({row}, absl::MakeConstSpan(residual.floats(), residual.num_floats()));
}

bool StageModel::waits_for_device() const {
  return !impl_->shards->on_host();
}

uint64_t StageModel::weight_bytes() const {
  uint64_t bytes = 0;
  for (const ShardUse& use : impl_->shards->uses()) bytes += use.weight_bytes;
  return bytes;
}

uint64_t StageModel::activation_bytes() const {
  uint64_t bytes = impl_->shards->shared_bytes() + impl_->ResidualBytes(impl_->max_rows);
  for (const ShardUse& use : impl_->shards->uses()) bytes += use.activation_bytes;
  if (impl_->output_head != nullptr) bytes += impl_->output_head->bytes();
  return bytes;
}

std::vector<ShardUse> StageModel::shards() const {
  return impl_->shards->uses();
}

int64_t StageModel::collective_ns() const {
  return impl_->shards->collective_ns();
}

uint64_t StageModel::replays() const {
  return impl_->shards->replays();
}

}  // namespace millrace
