// The tensor-parallel shards of one stage: their weights, working memory and threads, and what they compute
// together. A stage that is not cut has one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/device/cpu/host_memory.h"
#include "worker/device/cpu/shard_team.h"
#include "worker/device/cpu/shared_memory_collective.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/activations.h"
#include "worker/stage/float_buffer.h"
#include "worker/stage/shard_layout.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_compute.h"
#include "worker/stage/stage_weights.h"
#include "worker/stage/transformer_layer.h"

namespace millrace {

// Thread: one at a time, which is shard 0; the others have threads of their own.
class StageShards {
 public:
  // One shard for each of `backends`, which outlive this, as `file` and `hyper_parameters` do. Weights that
  // the backends want packed are packed here, each shard's by its own thread, and the file's pages of them
  // given back; the others are read once. INVALID_ARGUMENT: more shards than the model can be cut into,
  // rope_freqs.weight out of range. RESOURCE_EXHAUSTED: not enough memory.
  static absl::StatusOr<std::unique_ptr<StageShards>> Create(
      const GgufFile& file, const HyperParameters& hyper_parameters,
      absl::Span<const kernels::Backend* const> backends, const StageModelOptions& options);

  // Embeds the batch's tokens into `residual`, [batch.rows(), hidden]. REQUIRES: layout.first.
  void Embed(const StageBatch& batch, float* residual);

  // Runs layers first_layer + i of this stage over `residual`, i < layers, with layer first_kv_layer + i of
  // the cache.
  struct LayerRange {
    uint32_t first_layer = 0;
    uint32_t layers = 0;
    uint32_t first_kv_layer = 0;
  };
  void RunLayers(const LayerRange& range, const StageBatch& batch, float* residual, KvCache& cache);

  // Logits of rows of `residual` into `logits`, [rows.size(), vocabulary]. REQUIRES: layout.last, rows.size()
  // <= max_rows of the options.
  void Logits(absl::Span<const uint32_t> rows, const float* residual, float* logits);

  uint64_t max_rows() const { return shards_.front()->activations.max_rows(); }
  std::vector<ShardUse> uses() const;
  // Of the shared parts: RoPE table, partial sums.
  uint64_t shared_bytes() const;
  // Time that shard 0 has spent waiting for the others and adding their sums. Thread: any.
  int64_t collective_ns() const;
  // Elements of the products' matrices of one layer, on the average of this stage's layers, all shards
  // together.
  double layer_elements() const;

 private:
  struct Shard {
    ShardContext context;
    StageWeights weights;
    HostMemory packed;
    uint64_t mapped_bytes = 0;  // of the file, read in use
    Activations activations;
    absl::Status status;  // of loading
  };

  StageShards(const HyperParameters& hyper_parameters, absl::Span<const kernels::Backend* const> backends);
  void ViewWeights(const GgufFile& file, const ShardLayout& cut, const StageLayout& layout,
                   absl::Span<const kernels::Backend* const> backends);
  absl::Status AllocateShared(absl::Span<const kernels::Backend* const> backends,
                              const StageModelOptions& options, const ShardLayout& cut);
  void ShardLogits(Shard& shard, absl::Span<const uint32_t> rows, const float* residual, float* logits);

  const HyperParameters& model_;
  ShardTeam team_;
  FloatBuffer rope_table_;
  std::unique_ptr<SharedMemoryGroup> group_;  // null: one shard
  std::vector<std::unique_ptr<Shard>> shards_;
};

}  // namespace millrace
