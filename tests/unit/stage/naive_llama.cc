#include "tests/unit/stage/naive_llama.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace millrace::testing {
namespace {

double Half(const uint8_t* bytes) {
  const int bits = bytes[0] | bytes[1] << 8;
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

double Single(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

// Element `j` of a super-block of Q4_K (fifth_bits null) or Q5_K.
double WithMinimum(const uint8_t* block, const uint8_t* fifth_bits, const uint8_t* nibbles, size_t j) {
  const size_t sub = j / 32;
  const uint8_t* six = block + 4;
  const int scale = sub < 4 ? six[sub] % 64 : six[sub + 4] % 16 + six[sub - 4] / 64 * 16;
  const int minimum = sub < 4 ? six[sub + 4] % 64 : six[sub + 4] / 16 + six[sub] / 64 * 16;
  const int byte = nibbles[j / 64 * 32 + j % 32];
  int q = sub % 2 == 0 ? byte % 16 : byte / 16;
  if (fifth_bits != nullptr && ((fifth_bits[j % 32] >> sub) & 1) != 0) q += 16;
  return Half(block) * scale * q - Half(block + 2) * minimum;
}

double ElementOfQ6K(const uint8_t* block, size_t j) {
  const size_t half = j / 128, k = j % 128;
  const int byte = block[half * 64 + k % 64];
  const int two_bits = block[128 + half * 32 + k % 32] >> (k / 32 * 2) & 3;
  const int q = (k < 64 ? byte % 16 : byte / 16) + 16 * two_bits - 32;
  return Half(block + 208) * static_cast<int8_t>(block[192 + j / 16]) * q;
}

// Element `j` of the block at `block`.
double Element(TensorType type, const uint8_t* block, size_t j) {
  const auto nibble = [&](const uint8_t* nibbles) { return j < 16 ? nibbles[j] & 15 : nibbles[j - 16] >> 4; };
  switch (type) {
    case TensorType::kF32:
      return Single(block[0] | block[1] << 8 | block[2] << 16 | uint32_t{block[3]} << 24);
    case TensorType::kF16:
      return Half(block);
    case TensorType::kBF16:
      return Single(block[0] << 16 | uint32_t{block[1]} << 24);
    case TensorType::kQ8_0:
      return Half(block) * static_cast<int8_t>(block[2 + j]);
    case TensorType::kQ4_0:
      return Half(block) * (nibble(block + 2) - 8);
    case TensorType::kQ4_1:
      return Half(block) * nibble(block + 4) + Half(block + 2);
    case TensorType::kQ5_0:
      return Half(block) * (nibble(block + 6) + 16 * (block[2 + j / 8] >> j % 8 & 1) - 16);
    case TensorType::kQ4_K:
      return WithMinimum(block, nullptr, block + 16, j);
    case TensorType::kQ5_K:
      return WithMinimum(block, block + 16, block + 48, j);
    case TensorType::kQ6_K:
      return ElementOfQ6K(block, j);
  }
  MILLRACE_CHECK(false);
  return 0;
}

}  // namespace

NaiveLlama::Values NaiveLlama::Tensor(absl::string_view name) const {
  const TensorInfo* tensor = file_.FindTensor(name);
  MILLRACE_CHECK(tensor != nullptr);
  const TensorTypeLayout layout = LayoutOf(tensor->type);
  Values values(tensor->bytes.size() / layout.bytes * layout.elements);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint8_t* block = tensor->bytes.data() + i / layout.elements * layout.bytes;
    values[i] = Element(tensor->type, block, i % layout.elements);
  }
  return values;
}

NaiveLlama::Trace NaiveLlama::Run(const std::vector<TokenId>& ids) const {
  Trace trace;
  Values x = Embed(ids);
  trace.residual.push_back(x);
  for (uint32_t layer = 0; layer < shape_.num_layers; ++layer) {
    AddAttention(layer, x);
    AddFeedForward(layer, x);
    trace.residual.push_back(x);
  }
  const bool tied = file_.FindTensor("output.weight") == nullptr;
  trace.logits = Product(Normed(x, "output_norm.weight"), tied ? "token_embd.weight" : "output.weight",
                         shape_.hidden_size);
  return trace;
}

NaiveLlama::Values NaiveLlama::Embed(const std::vector<TokenId>& ids) const {
  const Values table = Tensor("token_embd.weight");
  Values x;
  for (TokenId id : ids) {
    const auto row = table.begin() + size_t{id} * shape_.hidden_size;
    x.insert(x.end(), row, row + shape_.hidden_size);
  }
  return x;
}

void NaiveLlama::AddAttention(uint32_t layer, Values& x) const {
  const std::string prefix = absl::StrCat("blk.", layer, ".");
  const Values normed = Normed(x, prefix + "attn_norm.weight");
  Values q = Product(normed, prefix + "attn_q.weight", shape_.hidden_size);
  Values k = Product(normed, prefix + "attn_k.weight", shape_.hidden_size);
  const Values v = Product(normed, prefix + "attn_v.weight", shape_.hidden_size);
  Rotate(q, shape_.num_heads);
  Rotate(k, shape_.num_kv_heads);
  const Values added =
      Product(Attend(q, k, v), prefix + "attn_output.weight", size_t{shape_.num_heads} * shape_.head_size);
  for (size_t i = 0; i < x.size(); ++i) x[i] += added[i];
}

void NaiveLlama::AddFeedForward(uint32_t layer, Values& x) const {
  const std::string prefix = absl::StrCat("blk.", layer, ".");
  const Values normed = Normed(x, prefix + "ffn_norm.weight");
  Values gate = Product(normed, prefix + "ffn_gate.weight", shape_.hidden_size);
  const Values up = Product(normed, prefix + "ffn_up.weight", shape_.hidden_size);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
  const Values added = Product(gate, prefix + "ffn_down.weight", shape_.ffn_size);
  for (size_t i = 0; i < x.size(); ++i) x[i] += added[i];
}

NaiveLlama::Values NaiveLlama::Normed(const Values& x, absl::string_view weight) const {
  const Values scale = Tensor(weight);
  const size_t columns = shape_.hidden_size;
  Values out(x.size());
  for (size_t begin = 0; begin < x.size(); begin += columns) {
    double squares = 0;
    for (size_t i = 0; i < columns; ++i) squares += x[begin + i] * x[begin + i];
    const double root = std::sqrt(squares / static_cast<double>(columns) + shape_.rms_epsilon);
    for (size_t i = 0; i < columns; ++i) out[begin + i] = x[begin + i] / root * scale[i];
  }
  return out;
}

NaiveLlama::Values NaiveLlama::Product(const Values& x, absl::string_view weight, size_t columns) const {
  const Values w = Tensor(weight);
  const size_t rows = x.size() / columns;
  const size_t outputs = w.size() / columns;
  Values out(rows * outputs, 0.0);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t o = 0; o < outputs; ++o) {
      for (size_t c = 0; c < columns; ++c) out[r * outputs + o] += x[r * columns + c] * w[o * columns + c];
    }
  }
  return out;
}

void NaiveLlama::Rotate(Values& x, size_t heads) const {
  const bool has_divisors = file_.FindTensor("rope_freqs.weight") != nullptr;
  const Values divisors = has_divisors ? Tensor("rope_freqs.weight") : Values(shape_.rope_dims / 2, 1.0);
  const double scale = shape_.rope_scaling == RopeScaling::kLinear ? shape_.rope_scale_factor : 1.0;
  const size_t width = heads * shape_.head_size;
  for (size_t row = 0; row < x.size() / width; ++row) {
    for (size_t head = 0; head < heads; ++head) {
      for (size_t i = 0; i < shape_.rope_dims / 2; ++i) {
        const double frequency =
            1 / std::pow(shape_.rope_base, 2.0 * static_cast<double>(i) / shape_.rope_dims);
        const double angle = static_cast<double>(row) / scale * frequency / divisors[i];
        double* pair = &x[row * width + head * shape_.head_size + 2 * i];
        const double a = pair[0];
        const double b = pair[1];
        pair[0] = a * std::cos(angle) - b * std::sin(angle);
        pair[1] = a * std::sin(angle) + b * std::cos(angle);
      }
    }
  }
}

NaiveLlama::Values NaiveLlama::Attend(const Values& q, const Values& k, const Values& v) const {
  const size_t size = shape_.head_size;
  const size_t heads = shape_.num_heads;
  const size_t kv_heads = shape_.num_kv_heads;
  Values out(q.size(), 0.0);
  for (size_t row = 0; row < q.size() / (heads * size); ++row) {
    for (size_t head = 0; head < heads; ++head) {
      const size_t kv_head = head / (heads / kv_heads);
      const double* query = &q[(row * heads + head) * size];
      Values weights(row + 1, 0.0);
      double largest = -std::numeric_limits<double>::infinity();
      for (size_t t = 0; t <= row; ++t) {
        for (size_t d = 0; d < size; ++d) weights[t] += query[d] * k[(t * kv_heads + kv_head) * size + d];
        largest = std::max(largest, weights[t] /= std::sqrt(static_cast<double>(size)));
      }
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - largest);
      for (size_t t = 0; t <= row; ++t) {
        for (size_t d = 0; d < size; ++d) {
          out[(row * heads + head) * size + d] += weights[t] / sum * v[(t * kv_heads + kv_head) * size + d];
        }
      }
    }
  }
  return out;
}

}  // namespace millrace::testing
