// The shape of a Llama-architecture model, read from GGUF metadata and checked against the tensors of the
// file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/kv_type.h"
#include "model/gguf_file.h"

namespace millrace {

enum class RopeScaling { kNone, kLinear };

struct HyperParameters {
  std::string name;          // general.name, at most 800 printable ASCII characters
  std::string architecture;  // "llama"
  uint32_t num_layers = 0;
  uint32_t hidden_size = 0;
  uint32_t ffn_size = 0;
  uint32_t num_heads = 0;
  uint32_t num_kv_heads = 0;
  uint32_t head_size = 0;
  uint32_t rope_dims =
      0;  // even, <= head_size; the first so many dims of a head are rotated, as (2i, 2i+1) pairs
  double rope_base = 10000.0;
  RopeScaling rope_scaling = RopeScaling::kNone;
  double rope_scale_factor = 1.0;  // linear: positions are divided by it
  float rms_epsilon = 1e-5f;
  uint32_t vocabulary_size = 0;
  uint32_t context_tokens = 0;
  bool tied_output = false;  // no output.weight: the embedding serves

  // 2 x layers x kv heads x KvHeadBytes.
  uint64_t KvBytesPerToken(uint32_t layers, KvType type = KvType::kF32) const {
    return uint64_t{2} * layers * num_kv_heads * KvHeadBytes(type, head_size);
  }
};

// Errors: INVALID_ARGUMENT naming key or tensor, what it is and what it must be. On OK every tensor the model
// needs is there with its exact shape and a type that can be computed with, there is none it does not need (a
// bias, say, would be left out without a word), and sizes are far from overflow. A vocabulary in the file has
// as many tokens as the embedding has rows.
absl::StatusOr<HyperParameters> ReadHyperParameters(const GgufFile& file);

// Tensors of one layer, or of the ends of the model, as pointers into the file. Shapes are checked by
// ReadHyperParameters.
struct LayerTensors {
  const TensorInfo* attn_norm;    // F32 [hidden]
  const TensorInfo* attn_q;       // [heads * head_size, hidden]
  const TensorInfo* attn_k;       // [kv_heads * head_size, hidden]
  const TensorInfo* attn_v;       // [kv_heads * head_size, hidden]
  const TensorInfo* attn_output;  // [hidden, heads * head_size]
  const TensorInfo* ffn_norm;     // F32 [hidden]
  const TensorInfo* ffn_gate;     // [ffn, hidden]
  const TensorInfo* ffn_up;       // [ffn, hidden]
  const TensorInfo* ffn_down;     // [hidden, ffn]
};
LayerTensors FindLayerTensors(const GgufFile& file, uint32_t layer);  // REQUIRES: ReadHyperParameters was OK

struct EndTensors {
  const TensorInfo* token_embedding;  // [vocabulary, hidden]
  const TensorInfo* output_norm;      // F32 [hidden]
  const TensorInfo* output;           // [vocabulary, hidden]; the embedding if tied
  const TensorInfo* rope_freqs;       // F32 [rope_dims / 2], divides the inverse frequencies; may be null
};
EndTensors FindEndTensors(const GgufFile& file);  // REQUIRES: ReadHyperParameters was OK

// Bytes of the tensors that a stage with these layers reads (first: embedding; last: output norm and output
// matrix; every stage: rope_freqs). A tied matrix that serves both ends of one stage counts once. REQUIRES:
// ReadHyperParameters was OK and the layers exist.
uint64_t StageWeightBytes(const GgufFile& file, uint32_t first_layer, uint32_t num_layers, bool first,
                          bool last);

}  // namespace millrace
