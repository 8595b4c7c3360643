// The layers of one stage: embedding (first stage), transformer layers, output norm, logits and sampling (last stage).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/generation.h"
#include "kernels/backend.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/stage_batch.h"

namespace millrace {

struct StageLayout {
  uint32_t first_layer = 0;
  uint32_t num_layers = 0;
  bool first = false;  // has the embedding
  bool last = false;   // has the output norm, the output matrix and the sampler
};

// Thread: compute. All working memory is allocated by Create; Run allocates nothing large.
class StageModel {
 public:
  // `file`, `backend` outlive this. `progress(done, total)` is called with bytes read now and then; weights are read once (paged
  // in) here, so that the first microbatch does not wait for the disk. RESOURCE_EXHAUSTED: not enough memory.
  // INVALID_ARGUMENT: a layout outside the model.
  static absl::StatusOr<std::unique_ptr<StageModel>> Create(
      const GgufFile& file, const HyperParameters& hyper_parameters, const StageLayout& layout, uint32_t max_rows,
      uint32_t context_tokens, const kernels::Backend& backend,
      const std::function<void(uint64_t, uint64_t)>& progress);
  ~StageModel();

  // Runs one microbatch through the layers. `input` is [rows, hidden] from the stage before (empty on the first stage). The
  // result is [rows, hidden], in memory of this object, valid until the next Run.
  // REQUIRES: CheckBatch(batch, limits) was OK with limits no larger than this object's and the cache's sizes.
  absl::Span<const float> Run(const StageBatch& batch, absl::Span<const float> input, KvCache& cache);

  // Last stage: tokens and log probabilities from what Run returned; one result for each segment that asks for a token or
  // prompt log probabilities, in order. REQUIRES: layout.last, and Run was called with this batch just before.
  std::vector<SequenceResult> Sample(const StageBatch& batch);

  uint64_t weight_bytes() const;
  uint64_t activation_bytes() const;

 private:
  struct Impl;
  explicit StageModel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// INVALID_ARGUMENT: what in the batch breaks which limit (rows, block ids, positions, token ids, history, options).
absl::Status CheckBatch(const StageBatch& batch, const StageLimits& limits);

}  // namespace millrace
