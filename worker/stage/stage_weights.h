// The tensors of one stage as the kernels take them.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/weights.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/stage/stage_layout.h"

namespace millrace {

struct LayerWeights {
  std::vector<float> attn_norm;       // [hidden]
  kernels::WeightMatrix attn_q;       // [heads * head_size, hidden]
  kernels::WeightMatrix attn_k;       // [kv_heads * head_size, hidden]
  kernels::WeightMatrix attn_v;       // [kv_heads * head_size, hidden]
  kernels::WeightMatrix attn_output;  // [hidden, heads * head_size]
  std::vector<float> ffn_norm;        // [hidden]
  kernels::WeightMatrix ffn_gate;     // [ffn, hidden]
  kernels::WeightMatrix ffn_up;       // [ffn, hidden]
  kernels::WeightMatrix ffn_down;     // [hidden, ffn]
};

// Matrices stay in the file's mapping; the small float tensors are copied, as the mapping need not align
// them. Immutable after ViewStageWeights. Thread: any.
struct StageWeights {
  std::vector<LayerWeights> layers;       // of this stage
  kernels::WeightMatrix token_embedding;  // [vocabulary, hidden]; first stage only
  std::vector<float> output_norm;         // [hidden]; last stage only
  kernels::WeightMatrix output;           // [vocabulary, hidden]; last stage only
  std::vector<float> rope_freqs;          // [rope_dims / 2], or empty
  // Every tensor above, once each, in the order of the file.
  std::vector<const TensorInfo*> tensors;

  uint64_t bytes() const;         // of tensors: what this stage reads of the file
  uint64_t copied_bytes() const;  // of the vectors above
};

// REQUIRES: ReadHyperParameters(file) was OK, and the layout lies in the model.
StageWeights ViewStageWeights(const GgufFile& file, const StageLayout& layout);

// Reads every page of the tensors once, so that the first microbatch does not wait for the disk.
// `progress(done, total)` is called with bytes, about every 16 MiB and at the end; may be empty.
void PageIn(const StageWeights& weights, const std::function<void(uint64_t, uint64_t)>& progress);

}  // namespace millrace
