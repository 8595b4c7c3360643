// Cuts text into the pieces that BPE works on, with the regular expression that a model was trained with.
#pragma once

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace {

// Immutable after Create. Thread: any.
//
// The expressions are those of the published tokenizers; \s is Unicode's White_Space. Input need not be
// UTF-8: it is cut into maximal runs of valid UTF-8, which the expression sees one at a time, and every byte
// between them is a piece of its own. Time is linear: should a match reach its limit of steps, the rest of
// the run becomes one piece.
class PreTokenizer {
 public:
  // `name`: the value of tokenizer.ggml.pre: smollm; gpt-2; llama-bpe, llama3, llama-v3 (the same); qwen2.
  // INVALID_ARGUMENT: another name. INTERNAL: PCRE2 has no memory.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(absl::string_view name);
  ~PreTokenizer();

  // Calls `emit` with each piece, in order; none is empty, and together they are `text`.
  void Split(absl::string_view text, absl::FunctionRef<void(absl::string_view piece)> emit) const;

  // What models of this family do unless their file says otherwise.
  bool ignores_merges() const;  // a piece that is a token is that token, even if merges would not make it
  bool adds_bos() const;        // BOS goes in front

 private:
  struct Impl;
  explicit PreTokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
