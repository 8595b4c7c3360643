// The working memory of one microbatch in one shard of a stage.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/hyper_parameters.h"
#include "worker/device/device.h"
#include "worker/stage/float_buffer.h"
#include "worker/stage/shard_layout.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_layout.h"

namespace millrace {

// Row-major; the first rows.rows rows are in use. Heads and FFN columns are the shard's. Floats are in the
// device's memory. Thread: the shard's.
struct Activations {
  float* residual = nullptr;        // [rows, hidden], the residual stream, never rounded
  FloatBuffer own_residual;         // [max_rows, hidden]; none if ops work in host memory
  FloatBuffer normed;               // [max_rows, hidden]
  FloatBuffer queries;              // [max_rows, heads, head_size]
  FloatBuffer keys;                 // [max_rows, kv_heads, head_size]
  FloatBuffer values;               // [max_rows, kv_heads, head_size]
  FloatBuffer attended;             // [max_rows, heads, head_size]
  FloatBuffer gate;                 // [max_rows, ffn]
  FloatBuffer up;                   // [max_rows, ffn]
  FloatBuffer prepared;             // the input of the matrix products that come next
  FloatBuffer scratch;              // of whichever kernel is running
  DeviceMemory tables;              // of PlaceBatch
  DeviceMemory tables_staging;      // likewise
  std::vector<uint32_t> token_ids;  // [max_rows]
  std::vector<uint32_t> positions;  // [max_rows]
  // Of the batch entered, whose block tables they point into. Room for max_rows.
  std::vector<kernels::KvSegment> segments;
  kernels::BatchRows rows;  // of the batch placed

  // RESOURCE_EXHAUSTED: not enough memory.
  struct Sizes {
    ShardSlice slice;
    uint32_t max_rows = 0;
    uint32_t context_tokens = 0;
    uint32_t block_tokens = 0;
  };
  static absl::StatusOr<Activations> Allocate(const HyperParameters& hyper_parameters, Device& device,
                                              const Sizes& sizes);

  // Token ids, positions and segments of the rows, for the host. `batch` stays until the next call. REQUIRES:
  // batch.rows() <= max_rows, no segment empty.
  void Enter(const StageBatch& batch);

  // Makes the rows of the batch entered known to the ops, and says where their residual stream is. `place`
  // rows, the last of which may belong to nobody: no fewer than the batch has, max_rows at most. REQUIRES:
  // blocks of so many tokens as Sizes says, unless ops work in host memory.
  void Place(const kernels::Backend& backend, size_t place, float* residual_stream);

  uint64_t max_rows() const { return token_ids.size(); }
  uint64_t bytes() const;  // of what this owns

 private:
  uint32_t block_tokens = 0;
  uint32_t context_tokens = 0;
};

}  // namespace millrace
