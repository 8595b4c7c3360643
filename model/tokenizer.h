// Byte-level BPE as GGUF files describe it (tokenizer.ggml.model "gpt2"), with the pre-tokenizers smollm,
// gpt-2, llama-bpe and qwen2 (regular expressions by PCRE2).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "model/gguf_file.h"

namespace millrace {

struct Vocabulary;  // model/vocabulary.h

// Bytes [begin, end) of a text.
struct TextRange {
  size_t begin;
  size_t end;
};

struct EncodeOptions {
  bool add_bos = true;  // put BOS in front if the model file says so and the text does not start with it
  bool parse_special = true;  // recognise control tokens spelt out in the text
  // Ranges in which they are not recognised all the same (what a user wrote in a chat); sorted, disjoint. A
  // control token that has even one byte in such a range is not recognised; one that ends where a range
  // begins, or begins where it ends, is.
  absl::Span<const TextRange> literal_ranges;
};

// Immutable after FromGguf. Thread: any.
class Tokenizer {
 public:
  // INVALID_ARGUMENT: another tokenizer model, an unknown pre-tokenizer, inconsistent vocabulary; names file
  // and key.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufFile& file);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromVocabulary(const Vocabulary& vocabulary);
  ~Tokenizer();

  // Never fails, for any bytes; time is O(n log n). Control and user-defined tokens are found first (the
  // leftmost, there the longest), then the text between is split and merged. Invalid UTF-8 becomes one token
  // per byte. Decode(Encode(x)) == x if no BOS was added and missing_bytes() is empty; else x without the
  // missing bytes.
  std::vector<TokenId> Encode(absl::string_view text, const EncodeOptions& options) const;

  // Bytes for which the vocabulary has no token, ascending. Encode leaves them out, as Hugging Face
  // tokenizers does (SmolLM2's vocabulary lacks six control characters, and bytes that occur only in invalid
  // UTF-8 or in planes 4 to 11, which Unicode does not use). A vocabulary that lacks a byte of any other
  // character is refused.
  absl::Span<const uint8_t> missing_bytes() const;

  // The bytes of the tokens. REQUIRES: ids < vocabulary_size(). Control tokens are spelt out unless
  // skip_special.
  std::string Decode(absl::Span<const TokenId> ids, bool skip_special) const;

  // The bytes of one token (a control token spelt out). REQUIRES: id < vocabulary_size().
  const std::string& TokenBytes(TokenId id) const;
  bool IsControl(TokenId id) const;

  uint32_t vocabulary_size() const;
  std::optional<TokenId> bos() const;
  bool adds_bos() const;
  // Tokens that end a generation: EOS, end of turn, end of message of the file, and control tokens known to
  // mean it (SmolLM2: <|im_end|> and <|endoftext|>). EOS comes first; each once.
  absl::Span<const TokenId> end_tokens() const;
  std::string bos_text() const;  // empty if none
  std::string eos_text() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
