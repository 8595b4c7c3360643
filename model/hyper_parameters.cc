#include "model/hyper_parameters.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

// Far above real models (a 405 B Llama: 126 layers, hidden 16384, FFN 53248, 128 heads), far below any
// overflow.
constexpr uint64_t kMaxLayers = 1024;
constexpr uint64_t kMaxHidden = 65536;
constexpr uint64_t kMaxFfn = uint64_t{1} << 20;
constexpr uint64_t kMaxHeads = 1024;
constexpr uint64_t kMaxHeadSize = 1024;
constexpr uint64_t kMaxVocabulary = uint64_t{1} << 22;
constexpr uint64_t kMaxContext = uint64_t{1} << 24;
constexpr double kMaxRopeBase = 1e12;
constexpr double kMaxRopeScale = 1e6;
constexpr double kMaxRmsEpsilon = 0.1;
constexpr size_t kMaxNameBytes = 200;

constexpr absl::string_view kTokenEmbedding = "token_embd.weight";
constexpr absl::string_view kOutputNorm = "output_norm.weight";
constexpr absl::string_view kOutput = "output.weight";
constexpr absl::string_view kRopeFreqs = "rope_freqs.weight";

std::string LayerTensorName(uint32_t layer, absl::string_view part) {
  return absl::StrCat("blk.", layer, ".", part, ".weight");
}

template <typename... Parts>
absl::Status Error(const GgufFile& file, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", parts...));
}

// As GgufFile's getters, but a missing key is as wrong as a bad one: the file is no complete model.
template <typename T>
absl::StatusOr<T> Needed(absl::StatusOr<T> value) {
  if (absl::IsNotFound(value.status())) return absl::InvalidArgumentError(value.status().message());
  return value;
}

absl::StatusOr<uint32_t> ReadCount(const GgufFile& file, absl::string_view key, uint64_t limit) {
  ASSIGN_OR_RETURN(const uint64_t value, Needed(file.GetUint(key)));
  if (value < 1 || value > limit)
    return Error(file, "metadata key '", key, "' is ", value, ", must be 1 to ", limit);
  return static_cast<uint32_t>(value);
}

absl::StatusOr<uint32_t> ReadCountOr(const GgufFile& file, absl::string_view key, uint64_t limit,
                                     uint32_t otherwise) {
  if (file.Find(key) == nullptr) return otherwise;
  return ReadCount(file, key, limit);
}

absl::StatusOr<double> ReadPositive(const GgufFile& file, absl::string_view key, double limit) {
  ASSIGN_OR_RETURN(const double value, Needed(file.GetFloat(key)));
  if (!(value > 0 && value <= limit)) {  // so that NaN is refused
    return Error(file, "metadata key '", key, "' is ", value, ", must be above 0 and at most ", limit);
  }
  return value;
}

absl::Status ReadNames(const GgufFile& file, HyperParameters& model) {
  ASSIGN_OR_RETURN(const absl::string_view architecture, Needed(file.GetString("general.architecture")));
  if (architecture != "llama") {
    return Error(file, "metadata key 'general.architecture' is '",
                 absl::CHexEscape(architecture.substr(0, kMaxNameBytes)),
                 "'; only 'llama' models can be served");
  }
  model.architecture = std::string(architecture);
  model.name = model.architecture;
  if (file.Find("general.name") != nullptr) {
    ASSIGN_OR_RETURN(const absl::string_view name, file.GetString("general.name"));
    // Escaped, as it goes into protobuf strings, which must be UTF-8, and into log lines.
    model.name = absl::CHexEscape(name.substr(0, kMaxNameBytes));
  }
  return absl::OkStatus();
}

absl::Status ReadAttention(const GgufFile& file, HyperParameters& model) {
  ASSIGN_OR_RETURN(model.num_heads, ReadCount(file, "llama.attention.head_count", kMaxHeads));
  ASSIGN_OR_RETURN(model.num_kv_heads,
                   ReadCountOr(file, "llama.attention.head_count_kv", kMaxHeads, model.num_heads));
  if (model.num_heads % model.num_kv_heads != 0) {
    return Error(file, "metadata key 'llama.attention.head_count_kv' is ", model.num_kv_heads,
                 ", must divide the ", model.num_heads, " heads of 'llama.attention.head_count'");
  }
  const bool given = file.Find("llama.attention.key_length") != nullptr;
  if (!given && model.hidden_size % model.num_heads != 0) {
    return Error(file, "metadata key 'llama.attention.key_length' is missing, and the hidden size ",
                 model.hidden_size, " is not a multiple of the ", model.num_heads, " heads");
  }
  const uint32_t even_share = model.hidden_size / model.num_heads;
  ASSIGN_OR_RETURN(model.head_size,
                   ReadCountOr(file, "llama.attention.key_length", kMaxHeadSize, even_share));
  ASSIGN_OR_RETURN(const uint32_t value_size,
                   ReadCountOr(file, "llama.attention.value_length", kMaxHeadSize, even_share));
  if (value_size != model.head_size) {
    return Error(file, "keys have ", model.head_size, " elements a head and values ", value_size,
                 " ('llama.attention.key_length', '.value_length'); they must be equal");
  }
  if (model.head_size > kMaxHeadSize || model.head_size % 2 != 0) {
    return Error(file, "the head size is ", model.head_size, ", must be even and at most ", kMaxHeadSize);
  }
  ASSIGN_OR_RETURN(const double epsilon,
                   ReadPositive(file, "llama.attention.layer_norm_rms_epsilon", kMaxRmsEpsilon));
  model.rms_epsilon = static_cast<float>(epsilon);
  if (!(model.rms_epsilon > 0)) {
    return Error(file, "metadata key 'llama.attention.layer_norm_rms_epsilon' is ", epsilon,
                 ", too small for a float");
  }
  return absl::OkStatus();
}

// Without a type, a factor means linear scaling; `llama.rope.scale_linear` is its older name.
absl::Status ReadRopeScaling(const GgufFile& file, HyperParameters& model) {
  constexpr absl::string_view kType = "llama.rope.scaling.type";
  constexpr absl::string_view kFactor = "llama.rope.scaling.factor";
  constexpr absl::string_view kOldFactor = "llama.rope.scale_linear";
  absl::string_view type = "linear";
  const bool has_type = file.Find(kType) != nullptr;
  if (has_type) {
    ASSIGN_OR_RETURN(type, file.GetString(kType));
  }
  if (type == "none") return absl::OkStatus();
  if (type != "linear") {
    return Error(file, "metadata key '", kType, "' is '", absl::CHexEscape(type.substr(0, kMaxNameBytes)),
                 "'; only 'none' and 'linear' are supported");
  }
  absl::string_view key = kFactor;
  if (file.Find(kFactor) == nullptr) {
    if (file.Find(kOldFactor) != nullptr) {
      key = kOldFactor;
    } else if (has_type) {
      return Error(file, "metadata key '", kFactor, "' is missing; 'linear' scaling needs it");
    } else {
      return absl::OkStatus();
    }
  }
  ASSIGN_OR_RETURN(const double factor, ReadPositive(file, key, kMaxRopeScale));
  if (factor < 1.0 / kMaxRopeScale) {
    return Error(file, "metadata key '", key, "' is ", factor, ", must be at least ", 1.0 / kMaxRopeScale);
  }
  if (factor != 1.0) model.rope_scaling = RopeScaling::kLinear;
  model.rope_scale_factor = factor;
  return absl::OkStatus();
}

absl::Status ReadRope(const GgufFile& file, HyperParameters& model) {
  ASSIGN_OR_RETURN(model.rope_dims,
                   ReadCountOr(file, "llama.rope.dimension_count", model.head_size, model.head_size));
  if (model.rope_dims % 2 != 0) {
    return Error(file, "metadata key 'llama.rope.dimension_count' is ", model.rope_dims, ", must be even");
  }
  if (file.Find("llama.rope.freq_base") != nullptr) {
    ASSIGN_OR_RETURN(model.rope_base, ReadPositive(file, "llama.rope.freq_base", kMaxRopeBase));
    if (model.rope_base < 1) {
      return Error(file, "metadata key 'llama.rope.freq_base' is ", model.rope_base, ", must be at least 1");
    }
  }
  return ReadRopeScaling(file, model);
}

// Keys that change what the layers compute in ways nothing here does.
absl::Status RefuseOtherGraphs(const GgufFile& file, const HyperParameters& model) {
  if (file.Find("llama.expert_count") != nullptr) {
    ASSIGN_OR_RETURN(const uint64_t experts, file.GetUint("llama.expert_count"));
    if (experts > 0)
      return Error(file, "a mixture of ", experts, " experts ('llama.expert_count') is not supported");
  }
  if (file.Find("llama.attention.causal") != nullptr) {
    ASSIGN_OR_RETURN(const bool causal, file.GetBool("llama.attention.causal"));
    if (!causal)
      return Error(file, "attention that is not causal ('llama.attention.causal') is not supported");
  }
  if (file.Find("llama.attention.sliding_window") != nullptr) {
    ASSIGN_OR_RETURN(const uint64_t window, file.GetUint("llama.attention.sliding_window"));
    if (window > 0 && window < model.context_tokens) {
      return Error(file, "a sliding window of ", window,
                   " tokens ('llama.attention.sliding_window'), shorter than the context of ",
                   model.context_tokens, ", is not supported");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadVocabularySize(const GgufFile& file, HyperParameters& model) {
  const TensorInfo* embedding = file.FindTensor(kTokenEmbedding);
  if (embedding == nullptr) return Error(file, "tensor '", kTokenEmbedding, "' is missing");
  const uint64_t rows = embedding->shape.size() == 2 ? embedding->shape[1] : 0;
  if (rows < 1 || rows > kMaxVocabulary) {
    return Error(file, "tensor '", kTokenEmbedding, "' has shape [", absl::StrJoin(embedding->shape, ", "),
                 "], must be [hidden size, vocabulary size] with 1 to ", kMaxVocabulary, " tokens");
  }
  model.vocabulary_size = static_cast<uint32_t>(rows);
  ASSIGN_OR_RETURN(const uint32_t declared,
                   ReadCountOr(file, "llama.vocab_size", kMaxVocabulary, model.vocabulary_size));
  if (declared != rows) {
    return Error(file, "metadata key 'llama.vocab_size' is ", declared, ", but tensor '", kTokenEmbedding,
                 "' has ", rows, " rows");
  }
  if (file.Find("tokenizer.ggml.tokens") != nullptr) {
    ASSIGN_OR_RETURN(const auto tokens, file.GetStrings("tokenizer.ggml.tokens"));
    if (tokens.size() != rows) {
      return Error(file, "metadata key 'tokenizer.ggml.tokens' has ", tokens.size(), " tokens, but tensor '",
                   kTokenEmbedding, "' has ", rows, " rows");
    }
  }
  return absl::OkStatus();
}

// Checks tensors against the shapes the model needs, and remembers which ones it needs.
class TensorChecker {
 public:
  explicit TensorChecker(const GgufFile& file) : file_(file) {}

  absl::Status Matrix(const std::string& name, uint64_t rows, uint64_t columns) {
    return Check(name, {columns, rows});
  }

  absl::Status Vector(const std::string& name, uint64_t length) {
    RETURN_IF_ERROR(Check(name, {length}));
    const TensorType type = file_.FindTensor(name)->type;
    if (type != TensorType::kF32)
      return Error(file_, "tensor '", name, "' has type ", NameOf(type), ", must be F32");
    return absl::OkStatus();
  }

  // A tensor that nothing here reads means a model whose graph is another one: its output would be wrong,
  // without a word.
  absl::Status NothingElse() const {
    for (const TensorInfo& tensor : file_.tensors()) {
      if (checked_.contains(tensor.name)) continue;
      const std::string shown = absl::CHexEscape(tensor.name);
      if (absl::EndsWith(tensor.name, ".bias")) {
        return Error(file_, "tensor '", shown, "': models with biases are not supported");
      }
      return Error(file_, "tensor '", shown,
                   "' is not part of a Llama model of this shape; such models are not supported");
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Check(const std::string& name, const std::vector<uint64_t>& shape) {
    const TensorInfo* tensor = file_.FindTensor(name);
    if (tensor == nullptr) return Error(file_, "tensor '", name, "' is missing");
    if (tensor->shape != shape) {
      return Error(file_, "tensor '", name, "' has shape [", absl::StrJoin(tensor->shape, ", "),
                   "], must be [", absl::StrJoin(shape, ", "), "]");
    }
    checked_.insert(tensor->name);
    return absl::OkStatus();
  }

  const GgufFile& file_;
  absl::flat_hash_set<absl::string_view> checked_;
};

absl::Status CheckLayer(TensorChecker& checker, const HyperParameters& model, uint32_t layer) {
  const uint64_t hidden = model.hidden_size;
  const uint64_t q_rows = uint64_t{model.num_heads} * model.head_size;
  const uint64_t kv_rows = uint64_t{model.num_kv_heads} * model.head_size;
  const auto name = [layer](absl::string_view part) { return LayerTensorName(layer, part); };
  RETURN_IF_ERROR(checker.Vector(name("attn_norm"), hidden));
  RETURN_IF_ERROR(checker.Matrix(name("attn_q"), q_rows, hidden));
  RETURN_IF_ERROR(checker.Matrix(name("attn_k"), kv_rows, hidden));
  RETURN_IF_ERROR(checker.Matrix(name("attn_v"), kv_rows, hidden));
  RETURN_IF_ERROR(checker.Matrix(name("attn_output"), hidden, q_rows));
  RETURN_IF_ERROR(checker.Vector(name("ffn_norm"), hidden));
  RETURN_IF_ERROR(checker.Matrix(name("ffn_gate"), model.ffn_size, hidden));
  RETURN_IF_ERROR(checker.Matrix(name("ffn_up"), model.ffn_size, hidden));
  return checker.Matrix(name("ffn_down"), hidden, model.ffn_size);
}

absl::Status CheckRopeFreqs(const GgufFile& file) {
  const TensorInfo& tensor = *file.FindTensor(kRopeFreqs);
  for (size_t i = 0; i < tensor.bytes.size() / sizeof(float); ++i) {
    float value;
    std::memcpy(&value, tensor.bytes.data() + i * sizeof(float), sizeof(float));
    if (!(std::isfinite(value) && value > 0)) {
      return Error(file, "tensor '", kRopeFreqs, "' element ", i, " is ", value,
                   ", must be finite and above 0");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTensors(const GgufFile& file, HyperParameters& model) {
  TensorChecker checker(file);
  RETURN_IF_ERROR(checker.Matrix(std::string(kTokenEmbedding), model.vocabulary_size, model.hidden_size));
  for (uint32_t layer = 0; layer < model.num_layers; ++layer) {
    RETURN_IF_ERROR(CheckLayer(checker, model, layer));
  }
  RETURN_IF_ERROR(checker.Vector(std::string(kOutputNorm), model.hidden_size));
  model.tied_output = file.FindTensor(kOutput) == nullptr;
  if (!model.tied_output) {
    RETURN_IF_ERROR(checker.Matrix(std::string(kOutput), model.vocabulary_size, model.hidden_size));
  }
  if (file.FindTensor(kRopeFreqs) != nullptr) {
    RETURN_IF_ERROR(checker.Vector(std::string(kRopeFreqs), model.rope_dims / 2));
    RETURN_IF_ERROR(CheckRopeFreqs(file));
  }
  return checker.NothingElse();
}

const TensorInfo* FindNeeded(const GgufFile& file, absl::string_view name) {
  const TensorInfo* tensor = file.FindTensor(name);
  MILLRACE_CHECK(tensor != nullptr);
  return tensor;
}

}  // namespace

absl::StatusOr<HyperParameters> ReadHyperParameters(const GgufFile& file) {
  HyperParameters model;
  RETURN_IF_ERROR(ReadNames(file, model));
  ASSIGN_OR_RETURN(model.num_layers, ReadCount(file, "llama.block_count", kMaxLayers));
  ASSIGN_OR_RETURN(model.hidden_size, ReadCount(file, "llama.embedding_length", kMaxHidden));
  ASSIGN_OR_RETURN(model.ffn_size, ReadCount(file, "llama.feed_forward_length", kMaxFfn));
  ASSIGN_OR_RETURN(model.context_tokens, ReadCount(file, "llama.context_length", kMaxContext));
  RETURN_IF_ERROR(ReadAttention(file, model));
  RETURN_IF_ERROR(ReadRope(file, model));
  RETURN_IF_ERROR(RefuseOtherGraphs(file, model));
  RETURN_IF_ERROR(ReadVocabularySize(file, model));
  RETURN_IF_ERROR(CheckTensors(file, model));
  return model;
}

LayerTensors FindLayerTensors(const GgufFile& file, uint32_t layer) {
  const auto find = [&](absl::string_view part) { return FindNeeded(file, LayerTensorName(layer, part)); };
  return LayerTensors{
      .attn_norm = find("attn_norm"),
      .attn_q = find("attn_q"),
      .attn_k = find("attn_k"),
      .attn_v = find("attn_v"),
      .attn_output = find("attn_output"),
      .ffn_norm = find("ffn_norm"),
      .ffn_gate = find("ffn_gate"),
      .ffn_up = find("ffn_up"),
      .ffn_down = find("ffn_down"),
  };
}

EndTensors FindEndTensors(const GgufFile& file) {
  const TensorInfo* embedding = FindNeeded(file, kTokenEmbedding);
  const TensorInfo* output = file.FindTensor(kOutput);
  return EndTensors{
      .token_embedding = embedding,
      .output_norm = FindNeeded(file, kOutputNorm),
      .output = output == nullptr ? embedding : output,
      .rope_freqs = file.FindTensor(kRopeFreqs),
  };
}

uint64_t StageWeightBytes(const GgufFile& file, uint32_t first_layer, uint32_t num_layers, bool first,
                          bool last) {
  uint64_t bytes = 0;
  for (uint32_t layer = first_layer; layer < first_layer + num_layers; ++layer) {
    const LayerTensors t = FindLayerTensors(file, layer);
    for (const TensorInfo* tensor : {t.attn_norm, t.attn_q, t.attn_k, t.attn_v, t.attn_output, t.ffn_norm,
                                     t.ffn_gate, t.ffn_up, t.ffn_down}) {
      bytes += tensor->bytes.size();
    }
  }
  const EndTensors ends = FindEndTensors(file);
  if (first) bytes += ends.token_embedding->bytes.size();
  if (last) bytes += ends.output_norm->bytes.size();
  const bool counted = first && ends.output == ends.token_embedding;
  if (last && !counted) bytes += ends.output->bytes.size();
  if (ends.rope_freqs != nullptr) bytes += ends.rope_freqs->bytes.size();
  return bytes;
}

}  // namespace millrace
