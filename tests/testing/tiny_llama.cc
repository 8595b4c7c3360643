#include "tests/testing/tiny_llama.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace millrace {
namespace {

constexpr size_t kBlock = 32;

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

// IEEE half, to nearest even. REQUIRES: finite and in the range of half.
uint16_t ToHalf(float value) {
  const uint32_t sign = (std::bit_cast<uint32_t>(value) >> 16) & 0x8000;
  const float magnitude = std::fabs(value);
  MILLRACE_CHECK(magnitude < 65504.0f);
  // Below the least normal half the spacing is fixed; above it the exponent gives it. nearbyint rounds to
  // even.
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  // A carry out of the mantissa runs into the exponent, as it should.
  const uint32_t bits = magnitude < 0x1p-14f ? steps : (static_cast<uint32_t>(exponent + 14) << 10) + steps;
  return static_cast<uint16_t>(sign | bits);
}

float FromHalf(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                        : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

uint16_t ToBfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// value = scale * q, q in -127 .. 127.
void EncodeQ8_0(const float* x, std::vector<uint8_t>& out) {
  float largest = 0;
  for (size_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(x[i]));
  const uint16_t half = ToHalf(largest / 127);
  const float scale = FromHalf(half);
  AppendBytes(out, half);
  for (size_t i = 0; i < kBlock; ++i) {
    const float q = scale == 0 ? 0 : std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f);
    AppendBytes(out, static_cast<int8_t>(q));
  }
}

uint8_t Nibble(float value, float scale) {
  return scale == 0 ? 0 : static_cast<uint8_t>(std::clamp(std::nearbyint(value / scale), 0.0f, 15.0f));
}

// Byte i of the 16 holds element i in its low half and element i + 16 in its high one.
void AppendNibbles(const float* x, float lowest, float scale, std::vector<uint8_t>& out) {
  for (size_t i = 0; i < kBlock / 2; ++i) {
    const uint8_t low = Nibble(x[i] - lowest, scale);
    const uint8_t high = Nibble(x[i + kBlock / 2] - lowest, scale);
    out.push_back(static_cast<uint8_t>(low | (high << 4)));
  }
}

// value = scale * (q - 8), q in 0 .. 15.
void EncodeQ4_0(const float* x, std::vector<uint8_t>& out) {
  float largest = 0;
  for (size_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(x[i]));
  const uint16_t half = ToHalf(largest / 8);
  AppendBytes(out, half);
  AppendNibbles(x, -8 * FromHalf(half), FromHalf(half), out);
}

// value = minimum + scale * q, q in 0 .. 15.
void EncodeQ4_1(const float* x, std::vector<uint8_t>& out) {
  const auto [low, high] = std::minmax_element(x, x + kBlock);
  const uint16_t scale = ToHalf((*high - *low) / 15);
  const uint16_t minimum = ToHalf(*low);
  AppendBytes(out, scale);
  AppendBytes(out, minimum);
  AppendNibbles(x, FromHalf(minimum), FromHalf(scale), out);
}

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
    builder_.AddTensor({.name = name,
                        .type = static_cast<uint32_t>(options_.type),
                        .shape = {columns, rows},
                        .bytes = EncodeTensor(options_.type, values),
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

std::vector<uint8_t> EncodeTensor(TensorType type, const std::vector<float>& values) {
  const size_t step = LayoutOf(type).elements;
  MILLRACE_CHECK(values.size() % step == 0);
  std::vector<uint8_t> out;
  out.reserve(values.size() / step * LayoutOf(type).bytes);
  for (size_t i = 0; i < values.size(); i += step) {
    const float* x = values.data() + i;
    switch (type) {
      case TensorType::kF32:
        AppendBytes(out, *x);
        break;
      case TensorType::kF16:
        AppendBytes(out, ToHalf(*x));
        break;
      case TensorType::kBF16:
        AppendBytes(out, ToBfloat16(*x));
        break;
      case TensorType::kQ8_0:
        EncodeQ8_0(x, out);
        break;
      case TensorType::kQ4_0:
        EncodeQ4_0(x, out);
        break;
      case TensorType::kQ4_1:
        EncodeQ4_1(x, out);
        break;
    }
  }
  return out;
}

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
