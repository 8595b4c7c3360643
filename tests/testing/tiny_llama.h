// A complete small Llama model with random weights: every file a cluster needs to run, made in a few
// milliseconds.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "model/gguf_file.h"
#include "tests/testing/gguf_builder.h"

namespace millrace {

// REQUIRES: heads a multiple of kv_heads; hidden, ffn and heads * head_size multiples of the type's block (32
// or 256 elements for those that are quantised); vocabulary at least kTinyLlamaMinVocabulary.
struct TinyLlamaOptions {
  uint32_t layers = 3;
  uint32_t hidden = 64;
  uint32_t ffn = 96;
  uint32_t heads = 4;
  uint32_t kv_heads = 2;
  uint32_t head_size = 16;
  uint32_t rope_dims = 0;  // 0: the head size
  uint32_t vocabulary = 320;
  uint32_t context = 512;
  TensorType type = TensorType::kF32;  // of all matrices, embedding and output included
  // Other types, of matrices by how their names end: {"ffn_down.weight", kQ6_K}; the last that fits counts.
  std::vector<std::pair<std::string, TensorType>> types_of = {};
  bool tied = true;
  bool rope_freqs = false;
  float rope_base = 10000.0f;
  float rope_linear_factor = 0.0f;  // 0: no scaling
  float weight_std = 0.1f;          // of the matrices; norms are in 0.5 .. 1.5
  uint64_t seed = 1;
  std::string name = "tiny";
};

// Token ids of the little vocabulary: control tokens first, as in SmolLM2, then the 256 bytes in the order of
// the byte-level alphabet, the merges, and unused tokens up to the wanted size. BOS is <|im_start|>, EOS
// <|im_end|>; no BOS is added.
inline constexpr uint32_t kTinyEndOfText = 0;
inline constexpr uint32_t kTinyImStart = 1;
inline constexpr uint32_t kTinyImEnd = 2;
inline constexpr uint32_t kTinyFirstByteToken = 3;
inline constexpr uint32_t kTinyLlamaMinVocabulary = 300;

// Equal options give equal bytes on every machine. Weights depend on seed, tensor name and position only: the
// F32 and the Q8_0 model of one seed are nearly the same model.
GgufBuilder TinyLlamaBuilder(const TinyLlamaOptions& options);  // to change before Build()
std::vector<uint8_t> BuildTinyLlama(const TinyLlamaOptions& options);

}  // namespace millrace
