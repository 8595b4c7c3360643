#include "coordinator/planner/model_shape.h"

#include <numeric>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace millrace {
namespace {

// Rows of the output matrix that are multiplied at a time.
constexpr uint64_t kLogitRows = 16;
constexpr uint64_t kSixteenBit = 2;

struct PublishedModel {
  const char* name;
  uint32_t layers, hidden, ffn, heads, kv_heads, head_size, vocabulary, context;
  bool tied;
  bool qkv_bias;
  // GPT-3: two FFN matrices instead of a gated three, biases everywhere, learned positions. Brown et al.,
  // arXiv 2005.14165.
  bool gpt;
};

// Touvron et al., arXiv 2307.09288; Llama 3: arXiv 2407.21783; SmolLM2: arXiv 2502.02737; Qwen2.5: arXiv
// 2412.15115; TinyLlama: arXiv 2401.02385; Mistral: arXiv 2310.06825; and their config.json.
constexpr PublishedModel kModels[] = {
    {"Llama-2-7B", 32, 4096, 11008, 32, 32, 128, 32000, 4096, false, false, false},
    {"Llama-2-13B", 40, 5120, 13824, 40, 40, 128, 32000, 4096, false, false, false},
    {"Llama-2-70B", 80, 8192, 28672, 64, 8, 128, 32000, 4096, false, false, false},
    {"Llama-3-8B", 32, 4096, 14336, 32, 8, 128, 128256, 8192, false, false, false},
    {"Llama-3-70B", 80, 8192, 28672, 64, 8, 128, 128256, 8192, false, false, false},
    {"GPT-3-175B", 96, 12288, 49152, 96, 96, 128, 50257, 2048, true, false, true},
    {"SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, 8192, true, false, false},
    {"SmolLM2-360M", 32, 960, 2560, 15, 5, 64, 49152, 8192, true, false, false},
    {"SmolLM2-1.7B", 24, 2048, 8192, 32, 32, 64, 49152, 8192, true, false, false},
    {"Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936, 32768, true, true, false},
    {"Qwen2.5-7B", 28, 3584, 18944, 28, 4, 128, 152064, 131072, false, true, false},
    {"TinyLlama-1.1B", 22, 2048, 5632, 32, 4, 64, 32000, 2048, false, false, false},
    {"Mistral-7B", 32, 4096, 14336, 32, 8, 128, 32000, 32768, false, false, false},
};

double Elements(const TensorInfo& matrix) {
  return static_cast<double>(matrix.shape[0]) * static_cast<double>(matrix.shape[1]);
}

ModelShape FromPublished(const PublishedModel& model) {
  ModelShape shape;
  shape.name = model.name;
  shape.num_layers = model.layers;
  shape.hidden_size = model.hidden;
  shape.ffn_size = model.ffn;
  shape.num_heads = model.heads;
  shape.num_kv_heads = model.kv_heads;
  shape.head_size = model.head_size;
  shape.vocabulary_size = model.vocabulary;
  shape.context_tokens = model.context;
  shape.row_element_bytes = kSixteenBit;
  shape.kv_type = KvType::kF16;
  const uint64_t hidden = model.hidden;
  const uint64_t queries = uint64_t{model.heads} * model.head_size;
  const uint64_t keys = uint64_t{model.kv_heads} * model.head_size;
  const uint64_t matrices =
      2 * hidden * queries + 2 * hidden * keys + (model.gpt ? 2 : 3) * hidden * model.ffn;
  uint64_t vectors = 2 * hidden;
  if (model.qkv_bias) vectors += queries + 2 * keys;
  if (model.gpt) vectors += 2 * hidden + queries + 2 * keys + 2 * hidden + model.ffn;
  shape.layer_elements.assign(model.layers, static_cast<double>(matrices));
  shape.layer_bytes.assign(model.layers, (matrices + vectors) * kSixteenBit);
  const uint64_t table = uint64_t{model.vocabulary} * hidden;
  const uint64_t embedding = table + (model.gpt ? model.context * hidden : 0);
  const uint64_t norm = (model.gpt ? 2 : 1) * hidden;
  shape.embedding_bytes = embedding * kSixteenBit;
  shape.output_bytes = (norm + table) * kSixteenBit;
  shape.output_elements = static_cast<double>(table);
  if (model.tied) shape.tied_bytes = table * kSixteenBit;
  shape.parameters =
      static_cast<double>(model.layers * (matrices + vectors) + embedding + norm + (model.tied ? 0 : table));
  return shape;
}

}  // namespace

uint64_t ModelShape::EndBytes(bool first, bool last) const {
  uint64_t bytes = shared_bytes;
  if (first) bytes += embedding_bytes;
  if (last) bytes += output_bytes;
  if (first && last) bytes -= tied_bytes;
  return bytes;
}

uint64_t ModelShape::WeightBytes(const LayerRange& layers) const {
  const auto begin = layer_bytes.begin() + layers.first;
  return std::accumulate(begin, begin + layers.count, EndBytes(layers.first == 0, last(layers)));
}

uint64_t ModelShape::ActivationBytes(const LayerRange& layers, uint32_t max_rows, uint32_t context) const {
  const uint64_t queries = uint64_t{num_heads} * head_size;
  const uint64_t keys = uint64_t{num_kv_heads} * head_size;
  const uint64_t row = 2 * (uint64_t{hidden_size} + queries + keys + ffn_size);
  uint64_t floats = max_rows * row + uint64_t{context} * head_size;
  if (last(layers)) floats += kLogitRows * (uint64_t{hidden_size} + vocabulary_size);
  return floats * sizeof(float);
}

ModelShape ReadModelShape(const GgufFile& file, const HyperParameters& hyper_parameters) {
  const HyperParameters& h = hyper_parameters;
  ModelShape shape;
  shape.name = h.name;
  shape.num_layers = h.num_layers;
  shape.hidden_size = h.hidden_size;
  shape.ffn_size = h.ffn_size;
  shape.num_heads = h.num_heads;
  shape.num_kv_heads = h.num_kv_heads;
  shape.head_size = h.head_size;
  shape.vocabulary_size = h.vocabulary_size;
  shape.context_tokens = h.context_tokens;
  for (uint32_t layer = 0; layer < h.num_layers; ++layer) {
    const LayerTensors t = FindLayerTensors(file, layer);
    double elements = 0;
    uint64_t bytes = t.attn_norm->bytes.size() + t.ffn_norm->bytes.size();
    for (const TensorInfo* matrix :
         {t.attn_q, t.attn_k, t.attn_v, t.attn_output, t.ffn_gate, t.ffn_up, t.ffn_down}) {
      elements += Elements(*matrix);
      bytes += matrix->bytes.size();
    }
    shape.layer_elements.push_back(elements);
    shape.layer_bytes.push_back(bytes);
    shape.parameters += elements + 2.0 * h.hidden_size;
  }
  const EndTensors ends = FindEndTensors(file);
  shape.embedding_bytes = ends.token_embedding->bytes.size();
  shape.output_bytes = ends.output_norm->bytes.size() + ends.output->bytes.size();
  shape.output_elements = Elements(*ends.output);
  if (h.tied_output) shape.tied_bytes = ends.output->bytes.size();
  if (ends.rope_freqs != nullptr) shape.shared_bytes = ends.rope_freqs->bytes.size();
  shape.parameters += shape.output_elements + h.hidden_size;
  if (!h.tied_output) shape.parameters += Elements(*ends.token_embedding);
  return shape;
}

absl::StatusOr<ModelShape> NamedShape(absl::string_view name) {
  for (const PublishedModel& model : kModels) {
    if (absl::EqualsIgnoreCase(model.name, name)) return FromPublished(model);
  }
  return absl::NotFoundError(
      absl::StrCat("unknown shape '", name, "'; known: ", absl::StrJoin(ShapeNames(), ", ")));
}

std::vector<std::string> ShapeNames() {
  std::vector<std::string> names;
  for (const PublishedModel& model : kModels) names.push_back(model.name);
  return names;
}

}  // namespace millrace
