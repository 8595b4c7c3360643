// What the planner knows of a model: how much each part weighs, computes and keeps for a token. From a file
// or from a name; nothing is loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/kv_type.h"
#include "coordinator/planner/placement.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"

namespace millrace {

struct ModelShape {
  std::string name;
  uint32_t num_layers = 0;
  uint32_t hidden_size = 0;
  uint32_t ffn_size = 0;
  uint32_t num_heads = 0;
  uint32_t num_kv_heads = 0;
  uint32_t head_size = 0;
  uint32_t vocabulary_size = 0;
  uint32_t context_tokens = 0;
  double parameters = 0;  // each once: a tied matrix, too

  // By layer: elements of the matrices that a token is multiplied by, and bytes of all tensors.
  std::vector<double> layer_elements;
  std::vector<uint64_t> layer_bytes;
  uint64_t embedding_bytes = 0;  // first stage
  uint64_t output_bytes = 0;     // last stage: output norm and output matrix, the embedding's if tied
  uint64_t tied_bytes = 0;       // of both, the matrix that is the same
  uint64_t shared_bytes = 0;     // every stage
  double output_elements = 0;
  uint32_t row_element_bytes = 4;  // of each element of a row that crosses between devices
  KvType kv_type = KvType::kF32;

  // Keys and values of one token in so many layers.
  uint64_t KvBytesPerToken(uint32_t layers) const {
    return uint64_t{2} * layers * num_kv_heads * KvHeadBytes(kv_type, head_size);
  }
  // Embedding, output and what every stage reads; a tied matrix that serves both ends counts once.
  uint64_t EndBytes(bool first, bool last) const;
  // What a stage of these layers reads.
  uint64_t WeightBytes(const LayerRange& layers) const;
  // Working memory of a stage: float32 rows of a microbatch, RoPE table, logits. Kernel scratch is left out.
  uint64_t ActivationBytes(const LayerRange& layers, uint32_t max_rows, uint32_t context) const;
  bool last(const LayerRange& layers) const { return layers.first + layers.count == num_layers; }
};

// REQUIRES: `hyper_parameters` were read from `file`.
ModelShape ReadModelShape(const GgufFile& file, const HyperParameters& hyper_parameters);

// A published model in 16 bit (weights and KV cache), by name, in any case. Sizes are those of the models'
// own configuration files. NOT_FOUND: an unknown name; the message lists the known ones.
absl::StatusOr<ModelShape> NamedShape(absl::string_view name);
std::vector<std::string> ShapeNames();

}  // namespace millrace
