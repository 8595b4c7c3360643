// What computes a stage, as the compute loop and the control side see it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/buffer_pool.h"
#include "common/generation.h"
#include "common/kv_type.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/device/device.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_layout.h"

namespace millrace {

struct StageModelOptions {
  StageLayout layout;
  uint32_t max_rows = 0;                                                  // of one microbatch
  uint32_t context_tokens = 0;                                            // no position is beyond
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;  // of bytes loaded; may be empty
  // Of the KV caches to come; what works in host memory takes any.
  uint32_t block_tokens = 16;
  KvType kv_type = KvType::kF16;
  // Microbatches of decodes run as recorded ahead (Prepare), where devices can; for tests to compare.
  bool record_decodes = true;
  uint32_t stage = 0;  // of the ring, for messages
};

// What one tensor-parallel shard of a stage holds.
struct ShardUse {
  uint32_t kv_heads = 0;
  uint64_t weight_bytes = 0;      // packed, or of the file and read in use
  uint64_t activation_bytes = 0;  // of its own
};

// StageModel, unless a benchmark puts something in its place. Thread: compute, but for the sizes.
class StageCompute {
 public:
  virtual ~StageCompute() = default;

  // Makes ready for microbatches with this cache, which may be the first or not; writes its blocks 0. Without
  // it they run all the same, but slower. Errors as Run.
  virtual absl::Status Prepare(KvCache& /*cache*/) { return absl::OkStatus(); }

  // Runs one microbatch through the layers, in place: the residual stream, [rows, hidden] float32, lives in
  // `input` from the moment it was received until it has been sent on. `input` is null on the first stage,
  // which takes a buffer of its own pool. The result holds exactly rows x hidden floats. REQUIRES:
  // CheckBatch(batch, limits) was OK with limits no larger than this object's and the cache's sizes; input
  // has exactly that size and no other user; the cache has this stage's layers, head size, KV heads
  // and its shards' KV heads. (A
  // CHECK guards each but the first.) An error: the device, or another shard, failed, and the stage is lost.
  virtual absl::StatusOr<std::shared_ptr<PooledBuffer>> Run(const StageBatch& batch,
                                                            std::shared_ptr<PooledBuffer> input,
                                                            KvCache& cache) = 0;

  // Last stage: tokens and log probabilities from what Run returned for this batch; one result for each
  // segment that asks for a token or prompt log probabilities, in order. Errors as Run. REQUIRES:
  // layout.last.
  virtual absl::StatusOr<std::vector<SequenceResult>> Sample(const StageBatch& batch,
                                                             const PooledBuffer& residual) = 0;

  // The calling thread's CPU time says nothing: it waits for a device. Thread: any.
  virtual bool waits_for_device() const { return false; }

  // Bytes of all weights, of all shards: what was packed, and what stays in the file and is read, once.
  // Thread: any.
  virtual uint64_t weight_bytes() const = 0;
  // Bytes of all that one microbatch works in, its residual stream included. Thread: any.
  virtual uint64_t activation_bytes() const = 0;
  // By shard; empty: what it is does not matter, and the cache has one shard. Thread: any.
  virtual std::vector<ShardUse> shards() const { return {}; }
  // Time that the calling shard has spent waiting for the others and adding what they computed, since it was
  // made. Thread: any.
  virtual int64_t collective_ns() const { return 0; }
};

// One device for each tensor-parallel shard; they and the file outlive what is made. Errors as
// StageModel::Create.
using StageComputeFactory = std::function<absl::StatusOr<std::unique_ptr<StageCompute>>(
    const GgufFile& file, const HyperParameters& hyper_parameters, DeviceGroup& devices,
    const StageModelOptions& options)>;

}  // namespace millrace
