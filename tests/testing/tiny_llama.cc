#include "tests/testing/tiny_llama.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "tests/testing/encode_tensor.h"

namespace millrace {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): unlike the distributions of <random>, the same everywhere.
class Random {
 public:
  Random(uint64_t seed, absl::string_view stream) : state_(seed) {
    for (const char c : stream) state_ = (state_ ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  float Uniform() { return static_cast<float>(Next() >> 40) * 0x1p-24f; }  // [0, 1)
  // About normal, standard deviation 1: four uniforms, whose sum has variance 1/3.
  float Bell() { return (Uniform() + Uniform() + Uniform() + Uniform() - 2.0f) * 1.7320508f; }

 private:
  uint64_t state_;
};

std::string Utf8(uint32_t code_point) {  // below U+0800 is all that is needed
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 63))};
}

// GPT-2's byte alphabet: printable bytes of Latin-1 stand for themselves, the others for U+0100 and up, in
// order.
std::vector<std::string> ByteAlphabet() {
  std::vector<std::string> letters;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    letters.push_back(Utf8(printable ? byte : next++));
  }
  return letters;
}

constexpr absl::string_view kChatTemplate =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

void AddTokenizer(const TinyLlamaOptions& options, GgufBuilder& builder) {
  constexpr int32_t kNormal = 1;
  constexpr int32_t kControl = 3;
  constexpr int32_t kUnused = 5;
  const std::string space = "\u0120";  // the letter of byte 0x20
  const std::vector<std::string> merges = {space + " t",   "h e",
                                           space + " a",   "i n",
                                           "r e",          "o n",
                                           space + "t he", "e r",
                                           space + " s",   "a t",
                                           space + " w",   "o u",
                                           "l l",          "n d",
                                           space + "a nd", "i s",
                                           "o r",          "he ll",
                                           "hell o",       space + "w or",
                                           "l d",          space + "wor ld",
                                           space + " i",   space + "i s"};
  std::vector<std::string> tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  std::vector<int32_t> types(tokens.size(), kControl);
  for (const std::string& letter : ByteAlphabet()) tokens.push_back(letter);
  for (const std::string& merge : merges) {
    const size_t gap = merge.find(' ');
    tokens.push_back(merge.substr(0, gap) + merge.substr(gap + 1));
  }
  types.resize(tokens.size(), kNormal);
  MILLRACE_CHECK(tokens.size() <= kTinyLlamaMinVocabulary && options.vocabulary >= kTinyLlamaMinVocabulary);
  while (tokens.size() < options.vocabulary) tokens.push_back(absl::StrCat("<unused", tokens.size(), ">"));
  types.resize(tokens.size(), kUnused);
  builder.AddString("tokenizer.ggml.model", "gpt2");
  builder.AddString("tokenizer.ggml.pre", "smollm");
  builder.AddStrings("tokenizer.ggml.tokens", tokens);
  builder.AddNumbers<int32_t>("tokenizer.ggml.token_type", GgufType::kInt32, types);
  builder.AddStrings("tokenizer.ggml.merges", merges);
  builder.AddUint32("tokenizer.ggml.bos_token_id", kTinyImStart);
  builder.AddUint32("tokenizer.ggml.eos_token_id", kTinyImEnd);
  builder.AddUint32("tokenizer.ggml.unknown_token_id", kTinyEndOfText);
  builder.AddBool("tokenizer.ggml.add_bos_token", false);
  builder.AddString("tokenizer.chat_template", kChatTemplate);
}

void AddShape(const TinyLlamaOptions& options, GgufBuilder& builder) {
  builder.AddString("general.architecture", "llama");
  builder.AddString("general.name", options.name);
  builder.AddUint32("llama.block_count", options.layers);
  builder.AddUint32("llama.context_length", options.context);
  builder.AddUint32("llama.embedding_length", options.hidden);
  builder.AddUint32("llama.feed_forward_length", options.ffn);
  builder.AddUint32("llama.attention.head_count", options.heads);
  builder.AddUint32("llama.attention.head_count_kv", options.kv_heads);
  if (options.heads * options.head_size != options.hidden) {
    builder.AddUint32("llama.attention.key_length", options.head_size);
    builder.AddUint32("llama.attention.value_length", options.head_size);
  }
  builder.AddFloat32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  builder.AddUint32("llama.rope.dimension_count",
                    options.rope_dims == 0 ? options.head_size : options.rope_dims);
  builder.AddFloat32("llama.rope.freq_base", options.rope_base);
  if (options.rope_linear_factor != 0) {
    builder.AddString("llama.rope.scaling.type", "linear");
    builder.AddFloat32("llama.rope.scaling.factor", options.rope_linear_factor);
  }
  builder.AddUint32("llama.vocab_size", options.vocabulary);
}

// Adds the tensors of a model under one set of options.
class TensorAdder {
 public:
  TensorAdder(const TinyLlamaOptions& options, GgufBuilder& builder) : options_(options), builder_(builder) {}

  void Matrix(const std::string& name, uint64_t rows, uint64_t columns) {
    Random random(options_.seed, name);
    std::vector<float> values(rows * columns);
    for (float& value : values) value = options_.weight_std * random.Bell();
    TensorType type = options_.type;
    for (const auto& [end, other] : options_.types_of) {
      if (absl::EndsWith(name, end)) type = other;
    }
    builder_.AddTensor({.name = name,
                        .type = static_cast<uint32_t>(type),
                        .shape = {columns, rows},
                        .bytes = EncodeTensor(type, values),
                        .offset = std::nullopt});
  }

  // Values in [from, from + 1).
  void Vector(const std::string& name, uint64_t length, float from) {
    Random random(options_.seed, name);
    std::vector<float> values(length);
    for (float& value : values) value = from + random.Uniform();
    builder_.AddTensor({.name = name,
                        .type = static_cast<uint32_t>(TensorType::kF32),
                        .shape = {length},
                        .bytes = EncodeTensor(TensorType::kF32, values),
                        .offset = std::nullopt});
  }

 private:
  const TinyLlamaOptions& options_;
  GgufBuilder& builder_;
};

}  // namespace

GgufBuilder TinyLlamaBuilder(const TinyLlamaOptions& options) {
  GgufBuilder builder;
  AddShape(options, builder);
  AddTokenizer(options, builder);
  TensorAdder add(options, builder);
  const uint64_t hidden = options.hidden;
  const uint64_t q_rows = uint64_t{options.heads} * options.head_size;
  const uint64_t kv_rows = uint64_t{options.kv_heads} * options.head_size;
  add.Matrix("token_embd.weight", options.vocabulary, hidden);
  for (uint32_t layer = 0; layer < options.layers; ++layer) {
    const std::string prefix = absl::StrCat("blk.", layer, ".");
    add.Vector(prefix + "attn_norm.weight", hidden, 0.5f);
    add.Matrix(prefix + "attn_q.weight", q_rows, hidden);
    add.Matrix(prefix + "attn_k.weight", kv_rows, hidden);
    add.Matrix(prefix + "attn_v.weight", kv_rows, hidden);
    add.Matrix(prefix + "attn_output.weight", hidden, q_rows);
    add.Vector(prefix + "ffn_norm.weight", hidden, 0.5f);
    add.Matrix(prefix + "ffn_gate.weight", options.ffn, hidden);
    add.Matrix(prefix + "ffn_up.weight", options.ffn, hidden);
    add.Matrix(prefix + "ffn_down.weight", hidden, options.ffn);
  }
  add.Vector("output_norm.weight", hidden, 0.5f);
  if (!options.tied) add.Matrix("output.weight", options.vocabulary, hidden);
  if (options.rope_freqs) {
    const uint32_t rope_dims = options.rope_dims == 0 ? options.head_size : options.rope_dims;
    add.Vector("rope_freqs.weight", rope_dims / 2, 1.0f);
  }
  return builder;
}

std::vector<uint8_t> BuildTinyLlama(const TinyLlamaOptions& options) {
  return TinyLlamaBuilder(options).Build();
}

}  // namespace millrace
