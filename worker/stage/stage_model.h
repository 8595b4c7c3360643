// The layers of one stage: embedding (first stage), transformer layers, output norm, logits and sampling
// (last stage).
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
#include "worker/stage/stage_layout.h"

namespace millrace {

struct StageModelOptions {
  StageLayout layout;
  uint32_t max_rows = 0;                                                  // of one microbatch
  uint32_t context_tokens = 0;                                            // no position is beyond
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;  // of bytes read; may be empty
};

// Thread: compute. All working memory is allocated by Create; Run allocates nothing large.
class StageModel {
 public:
  // `file`, `backend` outlive this. `progress` is called now and then; weights
  // are read once (paged in) here, so that the first microbatch does not wait for the disk.
  // RESOURCE_EXHAUSTED: not enough memory. INVALID_ARGUMENT: a layout outside the model (no layers, too many,
  // `first` or `last` at odds with the layers), max_rows 0, context_tokens 0 or more than the model's,
  // rope_freqs.weight out of range.
  static absl::StatusOr<std::unique_ptr<StageModel>> Create(const GgufFile& file,
                                                            const HyperParameters& hyper_parameters,
                                                            const kernels::Backend& backend,
                                                            const StageModelOptions& options);
  ~StageModel();

  // Runs one microbatch through the layers. `input` is [rows, hidden] from the stage before (empty on the
  // first stage); it need not be aligned. The result is the residual stream, [rows, hidden], in memory of
  // this object, valid until the next Run. REQUIRES: CheckBatch(batch, limits) was OK with limits no larger
  // than this object's and the cache's sizes; input has exactly that size; the cache has this stage's layers,
  // KV heads and head size. (A CHECK guards each but the first.)
  absl::Span<const float> Run(const StageBatch& batch, absl::Span<const float> input, KvCache& cache);

  // Last stage: tokens and log probabilities from what Run returned; one result for each segment that asks
  // for a token or prompt log probabilities, in order. REQUIRES: layout.last, and Run was called with this
  // batch just before.
  std::vector<SequenceResult> Sample(const StageBatch& batch);

  // Last stage: raw logits, [vocabulary], of one row of what Run returned; valid until the next call of
  // Logits or Sample. REQUIRES: layout.last, row < rows of the last Run.
  absl::Span<const float> Logits(uint32_t row);

  // Bytes of the file that this stage reads: every tensor it needs, once.
  uint64_t weight_bytes() const;
  // Bytes that Create allocated: activations, RoPE table, logits, sampler, copies of the norms.
  uint64_t activation_bytes() const;

 private:
  struct Impl;
  explicit StageModel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// INVALID_ARGUMENT: what in the batch breaks which limit (rows, block ids, positions, token ids, history,
// options).
//
// On OK nothing in the batch can make a stage read or write outside its memory, and no two segments write
// where another reads: a block that a segment writes to, or may write to later (any from the one with
// first_position on), is in no other segment's table. Blocks that lie wholly before first_position are only
// read and may be shared (a common prefix).
absl::Status CheckBatch(const StageBatch& batch, const StageLimits& limits);

}  // namespace millrace
