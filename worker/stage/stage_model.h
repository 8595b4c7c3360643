// The layers of one stage: embedding (first stage), transformer layers, output norm, logits and sampling
// (last stage).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/generation.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_compute.h"

namespace millrace {

// Thread: compute, which is shard 0; the other shards have threads of their own. All working memory is
// allocated by Create, but for residual streams: of these the first stage keeps as many for reuse as were on
// their way at once, and other stages work in what they received.
class StageModel final : public StageCompute {
 public:
  // `file` and `devices`, one for each tensor-parallel shard, outlive this. `progress` is called now and
  // then, in the calling thread. Weights that a backend wants packed are packed here, the others read once
  // (paged in), so that the first microbatch does not wait for the disk. RESOURCE_EXHAUSTED: not enough
  // memory. INVALID_ARGUMENT: more shards than the model can be cut into, a layout outside the model (no
  // layers, too many, `first` or `last` at odds with the layers), max_rows 0, context_tokens 0 or more than
  // the model's, rope_freqs.weight out of range.
  static absl::StatusOr<std::unique_ptr<StageModel>> Create(const GgufFile& file,
                                                            const HyperParameters& hyper_parameters,
                                                            DeviceGroup& devices,
                                                            const StageModelOptions& options);
  ~StageModel() override;

  absl::Status Prepare(KvCache& cache) override;
  absl::StatusOr<std::shared_ptr<PooledBuffer>> Run(const StageBatch& batch,
                                                    std::shared_ptr<PooledBuffer> input,
                                                    KvCache& cache) override;
  absl::StatusOr<std::vector<SequenceResult>> Sample(const StageBatch& batch,
                                                     const PooledBuffer& residual) override;

  // Last stage: raw logits, [vocabulary], of one row of what Run returned; valid until the next call of
  // Logits or Sample. REQUIRES: layout.last, `residual` has that row.
  absl::StatusOr<absl::Span<const float>> Logits(uint32_t row, const PooledBuffer& residual);

  bool waits_for_device() const override;
  uint64_t weight_bytes() const override;
  // Activations of all shards, their partial sums, one residual stream, RoPE table, logits, sampler, copies
  // of the norms.
  uint64_t activation_bytes() const override;
  std::vector<ShardUse> shards() const override;
  int64_t collective_ns() const override;
  // Microbatches that ran as recorded. Thread: any.
  uint64_t replays() const;

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
