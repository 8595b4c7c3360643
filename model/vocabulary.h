// What a model file says about its tokenizer, as plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "model/gguf_file.h"

namespace millrace {

// Values are those of tokenizer.ggml.token_type.
enum class TokenType : uint8_t {
  kNormal = 1,       // made by merges
  kUnknown = 2,      // stands for what has no token; as a control token here
  kControl = 3,      // means something to the model and is no text
  kUserDefined = 4,  // text that is always one token
  kUnused = 5,       // never encoded
  kByte = 6,         // "<0xNN>"
};

struct Vocabulary {
  std::string source;         // what error messages name: the file
  std::string pre_tokenizer;  // a name that PreTokenizer::Create knows
  std::vector<std::string>
      tokens;  // by id, as in the file: normal ones in the byte alphabet, the others in UTF-8
  std::vector<TokenType> types;     // as many as tokens, or none: all normal
  std::vector<std::string> merges;  // "left right" in the byte alphabet, best first
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  std::optional<TokenId> eot;
  std::optional<TokenId> eom;
  std::optional<bool> add_bos;  // absent: as the pre-tokenizer's family does
};

inline constexpr size_t kMaxTokens = size_t{1} << 24;
inline constexpr size_t kMaxMerges = size_t{1} << 26;

// Errors: INVALID_ARGUMENT naming file and key: missing, of another type, too large, or a tokenizer model
// that is not "gpt2".
absl::StatusOr<Vocabulary> ReadVocabulary(const GgufFile& file);

}  // namespace millrace
