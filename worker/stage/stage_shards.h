// The tensor-parallel shards of one stage: their weights, working memory and threads, and what they compute
// together. A stage that is not cut has one.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/device/cpu/shard_team.h"
#include "worker/device/device.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/activations.h"
#include "worker/stage/float_buffer.h"
#include "worker/stage/shard_layout.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_compute.h"
#include "worker/stage/stage_weights.h"
#include "worker/stage/transformer_layer.h"
#include "worker/stage/weight_loader.h"

namespace millrace {

// Where ops work in host memory, the residual stream that the caller gives is worked on in place, by all
// shards. Otherwise each shard copies it to its device, and shard 0 copies it back.
//
// Thread: one at a time, which is shard 0; the others have threads of their own. Errors of what runs on a
// device (Device::Finish), and of collectives: the stage is lost then.
class StageShards {
 public:
  // One shard for each of `devices`, which outlive this, as `file` and `hyper_parameters` do. Weights that
  // the backends want packed are packed here, each shard's by its own thread, and the file's pages of them
  // given back; the others are read once. INVALID_ARGUMENT: more shards than the model can be cut into,
  // rope_freqs.weight out of range. RESOURCE_EXHAUSTED: not enough memory.
  static absl::StatusOr<std::unique_ptr<StageShards>> Create(const GgufFile& file,
                                                             const HyperParameters& hyper_parameters,
                                                             DeviceGroup& devices,
                                                             const StageModelOptions& options);

  // Records decodes with this cache, for every bucket (decode_buckets.h), each after it has run once. What
  // was recorded before is dropped. Nothing where devices record nothing. The cache's blocks 0 are written.
  absl::Status Record(KvCache& cache);

  // Embeds the batch's tokens into `residual`, [batch.rows(), hidden]. REQUIRES: layout.first.
  void Embed(const StageBatch& batch, float* residual);

  // Runs layers first_layer + i of this stage over `residual`, i < layers, with layer first_kv_layer + i of
  // the cache.
  struct LayerRange {
    uint32_t first_layer = 0;
    uint32_t layers = 0;
    uint32_t first_kv_layer = 0;
  };
  absl::Status RunLayers(const LayerRange& range, const StageBatch& batch, float* residual, KvCache& cache);

  // Logits are made for at most so many rows at a time, so that their buffers stay small.
  static constexpr uint32_t kMaxLogitRows = 16;

  // Logits of rows of `residual`, which the last RunLayers left, into `logits`, [rows.size(), vocabulary].
  // REQUIRES: layout.last, rows.size() <= kMaxLogitRows and <= max_rows of the options.
  absl::Status Logits(absl::Span<const uint32_t> rows, const float* residual, float* logits);

  // Whether the devices choose tokens themselves (last stage only).
  bool samples() const { return sampling_.logits.size() != 0; }
  // Makes the logits of `rows` as Logits does, and asks of them; the answers to `asked`, in order, valid
  // until the next call. REQUIRES: samples(), as for Logits and kernels::SampleArgs, no more than two
  // questions a row.
  absl::StatusOr<const kernels::SampleResult*> Sample(absl::Span<const uint32_t> rows,
                                                      absl::Span<const kernels::SampleRow> asked);

  bool on_host() const { return devices_.device(0).on_host(); }
  uint64_t max_rows() const { return shards_.front()->activations.max_rows(); }
  // Microbatches of decodes that ran as they were recorded. Thread: any.
  uint64_t replays() const { return replays_.load(std::memory_order_relaxed); }
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
    DeviceMemory packed;
    DeviceMemory floats;        // norms and RoPE table, where ops do not work in host memory
    uint64_t mapped_bytes = 0;  // of the file, read in use
    Activations activations;
    FloatBuffer logits;          // [kMaxLogitRows, the shard's vocabulary]; likewise, and last stage only
    FloatBuffer logits_staging;  // likewise
    absl::Status status;         // of what ran last
  };
  // What was recorded for microbatches of up to `rows` decodes.
  struct Recording {
    uint32_t rows = 0;
    std::vector<std::unique_ptr<CapturedWork>> work;  // by shard
  };

  // Of shard 0's device, where it samples.
  struct Sampling {
    FloatBuffer logits;    // [kMaxLogitRows, vocabulary], of all shards
    DeviceMemory buffer;   // of the op
    DeviceMemory staging;  // likewise
    DeviceMemory results;  // [kMaxQuestions], staging
  };
  static constexpr uint32_t kMaxQuestions = 2 * kMaxLogitRows;

  StageShards(const HyperParameters& hyper_parameters, DeviceGroup& devices,
              const StageModelOptions& options);
  void ViewWeights(const GgufFile& file, const ShardLayout& cut);
  absl::Status AllocateShared(const ShardLayout& cut);
  absl::Status LoadShards(WeightLoader& loader);
  absl::Status PrepareShard(Shard& shard);
  absl::Status CopyFloatsOf(Shard& shard);
  absl::Status WarmUp();

  // Calls work in each shard's thread; the first error that is not another shard's.
  absl::Status InShards(absl::FunctionRef<absl::Status(uint32_t index, Shard& shard)> work);
  absl::Status RunShard(uint32_t index, const LayerRange& range, const StageBatch& batch, float* residual,
                        KvCache& cache);
  absl::Status EnqueueLayers(uint32_t index, const LayerRange& range, KvCache& cache);
  absl::Status RecordBucket(uint32_t rows, KvCache& cache);
  // Null: the batch runs op by op.
  const Recording* RecordingOf(const LayerRange& range, const StageBatch& batch, const KvCache& cache) const;
  StageBatch EmptyBatch(uint32_t sequences, uint32_t rows) const;
  absl::Status PrepareSampling();
  // Where a shard's part of the logits goes: rows of `stride` floats.
  struct LogitsPlace {
    float* begin = nullptr;
    size_t stride = 0;
  };
  // Enqueues its part of the logits.
  void EnqueueLogits(Shard& shard, absl::Span<const uint32_t> rows, const float* residual, LogitsPlace to);
  absl::Status ShardLogits(Shard& shard, absl::Span<const uint32_t> rows, const float* residual,
                           float* logits);
  absl::Status LogitsToSample(uint32_t index, absl::Span<const uint32_t> rows);
  void NormRows(Shard& shard, absl::Span<const uint32_t> rows, const float* residual);

  const HyperParameters& model_;
  DeviceGroup& devices_;
  const StageModelOptions options_;
  ShardTeam team_;
  FloatBuffer rope_table_;
  FloatBuffer residual_in_;                 // [max_rows, hidden], staging
  FloatBuffer residual_out_;                // likewise
  std::unique_ptr<CollectiveGroup> group_;  // null: one shard
  std::vector<std::unique_ptr<Shard>> shards_;
  Sampling sampling_;
  // Recorded work goes before the collectives in it.
  std::vector<Recording> recordings_;  // by rising rows
  uint64_t recorded_cache_ = 0;        // KvCache::id
  uint64_t microbatch_ = 0;            // that ran last
  std::atomic<uint64_t> replays_{0};
};

}  // namespace millrace
