// What computes a stage, as the compute loop and the control side see it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/buffer_pool.h"
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

// StageModel, unless a benchmark puts something in its place. Thread: compute, but for the sizes.
class StageCompute {
 public:
  virtual ~StageCompute() = default;

  // Runs one microbatch through the layers, in place: the residual stream, [rows, hidden] float32, lives in
  // `input` from the moment it was received until it has been sent on. `input` is null on the first stage,
  // which takes a buffer of its own pool. The result holds exactly rows x hidden floats. REQUIRES:
  // CheckBatch(batch, limits) was OK with limits no larger than this object's and the cache's sizes; input
  // has exactly that size and no other user; the cache has this stage's layers, KV heads and head size. (A
  // CHECK guards each but the first.)
  virtual std::shared_ptr<PooledBuffer> Run(const StageBatch& batch, std::shared_ptr<PooledBuffer> input,
                                            KvCache& cache) = 0;

  // Last stage: tokens and log probabilities from what Run returned for this batch; one result for each
  // segment that asks for a token or prompt log probabilities, in order. REQUIRES: layout.last.
  virtual std::vector<SequenceResult> Sample(const StageBatch& batch, const PooledBuffer& residual) = 0;

  // Bytes of the file that this stage reads: every tensor it needs, once. Thread: any.
  virtual uint64_t weight_bytes() const = 0;
  // Bytes of all that one microbatch works in, its residual stream included. Thread: any.
  virtual uint64_t activation_bytes() const = 0;
};

// The file and the backend outlive what is made. Errors as StageModel::Create.
using StageComputeFactory = std::function<absl::StatusOr<std::unique_ptr<StageCompute>>(
    const GgufFile& file, const HyperParameters& hyper_parameters, const kernels::Backend& backend,
    const StageModelOptions& options)>;

}  // namespace millrace
