#include "worker/stage/stage_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/stage/activations.h"
#include "worker/stage/output_head.h"
#include "worker/stage/rope_table.h"
#include "worker/stage/stage_weights.h"
#include "worker/stage/transformer_layer.h"

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
  const kernels::Backend& backend;
  uint32_t context_tokens;
  StageWeights weights;
  FloatBuffer rope_table;
  Activations activations;
  std::unique_ptr<OutputHead> output_head;  // last stage only
  BufferPool residuals;                     // first stage only

  size_t ResidualBytes(uint64_t rows) const { return rows * hyper_parameters.hidden_size * sizeof(float); }
  void Embed(size_t rows);
};

absl::StatusOr<std::unique_ptr<StageModel>> StageModel::Create(const GgufFile& file,
                                                               const HyperParameters& hyper_parameters,
                                                               const kernels::Backend& backend,
                                                               const StageModelOptions& options) {
  const StageLayout& layout = options.layout;
  const uint32_t context_tokens = options.context_tokens;
  RETURN_IF_ERROR(CheckLayout(layout, hyper_parameters));
  RETURN_IF_ERROR(CheckSizes(options.max_rows, context_tokens, hyper_parameters));
  std::unique_ptr<Impl> impl(new Impl{
      hyper_parameters, layout, backend, context_tokens, {}, {}, {}, {}, BufferPool(kIdleResiduals)});
  impl->weights = ViewStageWeights(file, layout);
  ASSIGN_OR_RETURN(impl->rope_table,
                   MakeRopeTable(hyper_parameters, impl->weights.rope_freqs, context_tokens));
  ASSIGN_OR_RETURN(impl->activations, Activations::Allocate(hyper_parameters, backend, options.max_rows));
  if (layout.last) {
    ASSIGN_OR_RETURN(impl->output_head, OutputHead::Create(impl->hyper_parameters, impl->weights, backend));
  }
  if (layout.first) {
    // Touches the pages, so that the first microbatch does not.
    const std::shared_ptr<PooledBuffer> residual = impl->residuals.Get(impl->ResidualBytes(options.max_rows));
    std::memset(residual->data, 0, residual->size);
  }
  PageIn(impl->weights, options.progress);
  return std::unique_ptr<StageModel>(new StageModel(std::move(impl)));
}

StageModel::StageModel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StageModel::~StageModel() = default;

std::shared_ptr<PooledBuffer> StageModel::Run(const StageBatch& batch, std::shared_ptr<PooledBuffer> input,
                                              KvCache& cache) {
  const HyperParameters& shape = impl_->hyper_parameters;
  MILLRACE_CHECK(cache.shape().num_layers == impl_->layout.num_layers);
  MILLRACE_CHECK(cache.shape().kv_heads == shape.num_kv_heads && cache.shape().head_size == shape.head_size);
  for (const StageSegment& segment : batch.segments) {
    MILLRACE_CHECK(segment.first_position + segment.token_ids.size() <= impl_->context_tokens);
  }
  const size_t rows = batch.rows();
  std::shared_ptr<PooledBuffer> residual = std::move(input);
  MILLRACE_CHECK((residual == nullptr) == impl_->layout.first);
  if (impl_->layout.first) residual = impl_->residuals.Get(impl_->ResidualBytes(rows));
  MILLRACE_CHECK(residual->size == impl_->ResidualBytes(rows));
  impl_->activations.Enter(batch, residual->floats());
  if (impl_->layout.first) impl_->Embed(rows);
  TransformerLayer layer(shape, impl_->rope_table, impl_->backend, impl_->activations);
  for (uint32_t i = 0; i < impl_->layout.num_layers; ++i) {
    layer.Run(impl_->weights.layers[i], cache.Layer(i), batch);
  }
  impl_->activations.residual = nullptr;
  return residual;
}

void StageModel::Impl::Embed(size_t rows) {
  kernels::EmbedArgs embed;
  embed.ids = activations.token_ids.data();
  embed.rows = rows;
  embed.table = weights.token_embedding;
  embed.out = activations.residual;
  backend.Embed(embed);
}

std::vector<SequenceResult> StageModel::Sample(const StageBatch& batch, const PooledBuffer& residual) {
  MILLRACE_CHECK(impl_->output_head != nullptr && residual.size == impl_->ResidualBytes(batch.rows()));
  return impl_->output_head->Sample(batch, absl::MakeConstSpan(residual.floats(), residual.num_floats()));
}

absl::Span<const float> StageModel::Logits(uint32_t row, const PooledBuffer& residual) {
  MILLRACE_CHECK(impl_->output_head != nullptr);
  return impl_->output_head->Logits({row}, absl::MakeConstSpan(residual.floats(), residual.num_floats()));
}

uint64_t StageModel::weight_bytes() const {
  return impl_->weights.bytes();
}

uint64_t StageModel::activation_bytes() const {
  uint64_t bytes = impl_->activations.bytes() + impl_->ResidualBytes(impl_->activations.max_rows()) +
                   impl_->rope_table.bytes() + impl_->weights.copied_bytes();
  if (impl_->output_head != nullptr) bytes += impl_->output_head->bytes();
  return bytes;
}

}  // namespace millrace
