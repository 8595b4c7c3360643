// The working memory of one microbatch in one shard of a stage.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/hyper_parameters.h"
#include "worker/stage/float_buffer.h"
#include "worker/stage/shard_layout.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_layout.h"

namespace millrace {

// Row-major; the first batch.rows() rows are in use. Heads and FFN columns are the shard's. Thread: the
// shard's.
struct Activations {
  float* residual = nullptr;        // [rows, hidden], the residual stream, never rounded; not owned
  FloatBuffer normed;               // [max_rows, hidden]
  FloatBuffer queries;              // [max_rows, heads, head_size]
  FloatBuffer keys;                 // [max_rows, kv_heads, head_size]
  FloatBuffer values;               // [max_rows, kv_heads, head_size]
  FloatBuffer attended;             // [max_rows, heads, head_size]
  FloatBuffer gate;                 // [max_rows, ffn]
  FloatBuffer up;                   // [max_rows, ffn]
  FloatBuffer prepared;             // the input of the matrix products that come next
  FloatBuffer scratch;              // of whichever kernel is running
  std::vector<uint32_t> token_ids;  // [max_rows]
  std::vector<uint32_t> positions;  // [max_rows]
  // Of the batch entered, whose block tables they point into. Room for max_rows.
  std::vector<kernels::KvSegment> segments;

  // RESOURCE_EXHAUSTED: not enough memory.
  struct Sizes {
    ShardSlice slice;
    uint32_t max_rows = 0;
  };
  static absl::StatusOr<Activations> Allocate(const HyperParameters& hyper_parameters,
                                              const kernels::Backend& backend, const Sizes& sizes);

  // Token ids, positions and segments of the rows, and where their residual stream is. `batch` stays until
  // the next call. REQUIRES: batch.rows() <= max_rows, no segment empty.
  void Enter(const StageBatch& batch, float* residual_stream);

  uint64_t max_rows() const { return token_ids.size(); }
  uint64_t bytes() const;  // of what this owns
};

}  // namespace millrace
