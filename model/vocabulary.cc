#include "model/vocabulary.h"

#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr char kModelKey[] = "tokenizer.ggml.model";
constexpr char kPreKey[] = "tokenizer.ggml.pre";
constexpr char kTokensKey[] = "tokenizer.ggml.tokens";
constexpr char kTypesKey[] = "tokenizer.ggml.token_type";
constexpr char kMergesKey[] = "tokenizer.ggml.merges";
constexpr char kAddBosKey[] = "tokenizer.ggml.add_bos_token";

absl::Status KeyError(const GgufFile& file, absl::string_view key, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", key, ": ", what));
}

// A missing key makes the file unusable, which is the same to the caller as a wrong one.
absl::Status AsInvalid(const absl::Status& status) {
  return status.ok() || !absl::IsNotFound(status) ? status : absl::InvalidArgumentError(status.message());
}

absl::StatusOr<std::string> ReadString(const GgufFile& file, absl::string_view key) {
  const auto text = file.GetString(key);
  if (!text.ok()) return AsInvalid(text.status());
  return std::string(*text);
}

absl::StatusOr<std::vector<std::string>> ReadStrings(const GgufFile& file, absl::string_view key,
                                                     size_t limit) {
  const auto strings = file.GetStrings(key);
  if (!strings.ok()) return AsInvalid(strings.status());
  if (strings->size() > limit) {
    return KeyError(file, key, absl::StrCat("has ", strings->size(), " strings, limit ", limit));
  }
  return std::vector<std::string>(strings->begin(), strings->end());
}

template <typename Integer>
absl::StatusOr<std::vector<TokenType>> ToTokenTypes(const GgufFile& file,
                                                    const std::vector<Integer>& values) {
  std::vector<TokenType> types;
  types.reserve(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < Integer{1} || values[i] > Integer{6}) {
      return KeyError(file, kTypesKey,
                      absl::StrCat("token ", i, " has type ", values[i], ", must be 1 to 6"));
    }
    types.push_back(static_cast<TokenType>(values[i]));
  }
  return types;
}

absl::StatusOr<std::vector<TokenType>> ReadTokenTypes(const GgufFile& file) {
  const GgufValue* value = file.Find(kTypesKey);
  if (value == nullptr) return std::vector<TokenType>();
  if (const auto* array = std::get_if<GgufArray>(value)) {
    if (const auto* integers = std::get_if<std::vector<int64_t>>(array)) return ToTokenTypes(file, *integers);
    if (const auto* integers = std::get_if<std::vector<uint64_t>>(array))
      return ToTokenTypes(file, *integers);
  }
  return KeyError(file, kTypesKey, "must be an array of integers");
}

absl::StatusOr<std::optional<TokenId>> ReadTokenId(const GgufFile& file, absl::string_view key,
                                                   size_t num_tokens) {
  if (file.Find(key) == nullptr) return std::optional<TokenId>();
  ASSIGN_OR_RETURN(const uint64_t id, file.GetUint(key));
  if (id >= num_tokens) {
    return KeyError(file, key,
                    absl::StrCat("is ", id, ", must be below the ", num_tokens, " tokens of ", kTokensKey));
  }
  return std::optional<TokenId>(static_cast<TokenId>(id));
}

}  // namespace

absl::StatusOr<Vocabulary> ReadVocabulary(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string model, ReadString(file, kModelKey));
  if (model != "gpt2") {
    return KeyError(file, kModelKey,
                    absl::StrCat("is '", model, "'; only 'gpt2' (byte-level BPE) is supported"));
  }
  Vocabulary vocabulary;
  vocabulary.source = file.path();
  ASSIGN_OR_RETURN(vocabulary.pre_tokenizer, ReadString(file, kPreKey));
  ASSIGN_OR_RETURN(vocabulary.tokens, ReadStrings(file, kTokensKey, kMaxTokens));
  ASSIGN_OR_RETURN(vocabulary.types, ReadTokenTypes(file));
  ASSIGN_OR_RETURN(vocabulary.merges, ReadStrings(file, kMergesKey, kMaxMerges));
  const size_t num_tokens = vocabulary.tokens.size();
  ASSIGN_OR_RETURN(vocabulary.bos, ReadTokenId(file, "tokenizer.ggml.bos_token_id", num_tokens));
  ASSIGN_OR_RETURN(vocabulary.eos, ReadTokenId(file, "tokenizer.ggml.eos_token_id", num_tokens));
  ASSIGN_OR_RETURN(vocabulary.eot, ReadTokenId(file, "tokenizer.ggml.eot_token_id", num_tokens));
  ASSIGN_OR_RETURN(vocabulary.eom, ReadTokenId(file, "tokenizer.ggml.eom_token_id", num_tokens));
  if (file.Find(kAddBosKey) != nullptr) {
    ASSIGN_OR_RETURN(vocabulary.add_bos, file.GetBool(kAddBosKey));
  }
  return vocabulary;
}

}  // namespace millrace
