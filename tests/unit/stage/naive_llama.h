// A Llama model by the book: double precision, whole sequences, no cache, no blocks. It shares no code with
// the kernels or the stage, down to the dequantisation, so that they can be tested against it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/ids.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"

namespace millrace::testing {

class NaiveLlama {
 public:
  // `file` outlives this.
  NaiveLlama(const GgufFile& file, const HyperParameters& shape) : file_(file), shape_(shape) {}

  struct Trace {
    std::vector<std::vector<double>>
        residual;                // [layers + 1] of [rows, hidden]: embedding, then after each layer
    std::vector<double> logits;  // [rows, vocabulary]
  };
  Trace Run(const std::vector<TokenId>& ids) const;

 private:
  using Values = std::vector<double>;

  Values Tensor(absl::string_view name) const;
  Values Embed(const std::vector<TokenId>& ids) const;
  void AddAttention(uint32_t layer, Values& x) const;
  void AddFeedForward(uint32_t layer, Values& x) const;
  Values Normed(const Values& x, absl::string_view weight) const;
  Values Product(const Values& x, absl::string_view weight, size_t columns) const;
  void Rotate(Values& x, size_t heads) const;
  Values Attend(const Values& q, const Values& k, const Values& v) const;

  const GgufFile& file_;
  const HyperParameters shape_;
};

}  // namespace millrace::testing
