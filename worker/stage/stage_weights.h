// The tensors of one shard of a stage as the kernels take them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/weights.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/stage/shard_layout.h"
#include "worker/stage/stage_layout.h"

namespace millrace {

// A small tensor, copied from the file, whose mapping need not align it.
struct FloatTensor {
  FloatTensor() = default;
  FloatTensor(std::vector<float> floats, absl::Span<const uint8_t> source)
      : values(std::move(floats)), data(values.data()), in_file(source) {}
  FloatTensor(FloatTensor&&) = default;
  FloatTensor& operator=(FloatTensor&&) = default;

  std::vector<float> values;
  const float* data = nullptr;        // in the backend's memory; `values` if that is host memory
  absl::Span<const uint8_t> in_file;  // what it was copied from
};

// Heads and FFN columns are the shard's.
struct LayerWeights {
  FloatTensor attn_norm;              // [hidden]
  kernels::WeightMatrix attn_q;       // [heads * head_size, hidden]
  kernels::WeightMatrix attn_k;       // [kv_heads * head_size, hidden]
  kernels::WeightMatrix attn_v;       // [kv_heads * head_size, hidden]
  kernels::WeightMatrix attn_output;  // [hidden, heads * head_size]
  FloatTensor ffn_norm;               // [hidden]
  kernels::WeightMatrix ffn_gate;     // [ffn, hidden]
  kernels::WeightMatrix ffn_up;       // [ffn, hidden]
  kernels::WeightMatrix ffn_down;     // [hidden, ffn]
};

// Matrices are views of the file's mapping until they are packed. Thread: any, once loaded.
struct StageWeights {
  std::vector<LayerWeights> layers;       // of this stage
  kernels::WeightMatrix token_embedding;  // [vocabulary, hidden], whole for every shard; first stage only
  FloatTensor output_norm;                // [hidden]; last stage only
  kernels::WeightMatrix output;           // [the shard's part of the vocabulary, hidden]; last stage only
  FloatTensor rope_freqs;                 // [rope_dims / 2], or empty

  // Those of the matrix products, layer by layer as they lie in most files; `output` last, if it is there and
  // has rows.
  std::vector<kernels::WeightMatrix*> Matrices();
  // What ops read besides.
  std::vector<FloatTensor*> Norms();
  uint64_t copied_bytes() const;  // of the tensors of floats
  // All bytes of the file that the above came from, from the first to the last of each. REQUIRES: nothing is
  // packed.
  std::vector<absl::Span<const uint8_t>> FileViews();
};

// REQUIRES: ReadHyperParameters(file) was OK, the layout lies in the model, the slice is of CutShards.
StageWeights ViewStageWeights(const GgufFile& file, const HyperParameters& hyper_parameters,
                              const StageLayout& layout, const ShardSlice& slice);

// Bytes of the matrix's elements in the file. REQUIRES: it is not packed.
uint64_t FileBytes(const kernels::WeightMatrix& matrix);

// From the first to the last byte of the matrix's elements; where it has some of the columns, bytes of others
// lie between them. REQUIRES: it is not packed, and has rows.
absl::Span<const uint8_t> FileView(const kernels::WeightMatrix& matrix);

// Reads every page of a matrix in the file once, so that the first microbatch does not wait for the disk.
void PageIn(const kernels::WeightMatrix& matrix);

}  // namespace millrace
