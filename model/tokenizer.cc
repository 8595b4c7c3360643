#include "model/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/bpe.h"
#include "model/byte_alphabet.h"
#include "model/pre_tokenizer.h"
#include "model/special_tokens.h"
#include "model/vocabulary.h"

namespace millrace {
namespace {

// How chat models spell the end of a turn, message or document. Files often name only one of several as EOS.
constexpr absl::string_view kEndTexts[] = {
    "<|eot_id|>",      "<|im_end|>",    "<|end|>",    "<|endoftext|>",
    "<|end_of_text|>", "<end_of_turn>", "<|eom_id|>", "</s>",
};

// Bounds the work at one position of a text.
constexpr size_t kMaxSpecialBytes = 512;

TokenType TypeOf(const Vocabulary& vocabulary, TokenId id) {
  return vocabulary.types.empty() ? TokenType::kNormal : vocabulary.types[id];
}

bool ActsAsControl(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUnknown;
}
bool ActsAsSpecial(TokenType type) {
  return ActsAsControl(type) || type == TokenType::kUserDefined;
}

// Characters that a vocabulary may lack: control characters other than tab and line ends, and what only
// invalid UTF-8, unassigned planes (F1, F2) or private use (F4) begin with.
bool MayLackToken(uint8_t byte) {
  if (byte < 0x20) return byte != '\t' && byte != '\n' && byte != '\r';
  return byte == 0x7F || byte == 0xC0 || byte == 0xC1 || byte == 0xF1 || byte == 0xF2 || byte >= 0xF4;
}

// The bytes that a token stands for. Some files have normal tokens outside the byte alphabet: those are text
// as it is.
std::string BytesOf(const std::string& text, TokenType type) {
  uint32_t byte = 0;
  switch (type) {
    case TokenType::kUnknown:
    case TokenType::kControl:
    case TokenType::kUserDefined:
      return text;
    case TokenType::kByte:
      if (text.size() == 6 && text.substr(0, 3) == "<0x" && text[5] == '>' &&
          absl::SimpleHexAtoi(text.substr(3, 2), &byte)) {
        return std::string(1, static_cast<char>(byte));
      }
      break;
    case TokenType::kNormal:
    case TokenType::kUnused:
      break;
  }
  return BytesOfSpelling(text).value_or(text);
}

absl::Status CheckSizes(const Vocabulary& vocabulary) {
  const auto error = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(vocabulary.source, ": tokenizer.ggml.", what...));
  };
  const size_t count = vocabulary.tokens.size();
  if (count == 0 || count > kMaxTokens) {
    return error("tokens: has ", count, " tokens, must be 1 to ", kMaxTokens);
  }
  if (!vocabulary.types.empty() && vocabulary.types.size() != count) {
    return error("token_type: has ", vocabulary.types.size(), " entries, must be one for each of ", count,
                 " tokens");
  }
  if (vocabulary.merges.size() > kMaxMerges) {
    return error("merges: has ", vocabulary.merges.size(), " entries, limit ", kMaxMerges);
  }
  for (const auto& [key, id] : {std::pair("bos", vocabulary.bos), std::pair("eos", vocabulary.eos),
                                std::pair("eot", vocabulary.eot), std::pair("eom", vocabulary.eom)}) {
    if (id && *id >= count)
      return error(key, "_token_id: is ", *id, ", must be below the ", count, " tokens");
  }
  if (vocabulary.add_bos.value_or(false) && !vocabulary.bos) {
    return error("add_bos_token: is true, but there is no tokenizer.ggml.bos_token_id");
  }
  for (TokenId id = 0; id < count; ++id) {
    const size_t bytes = vocabulary.tokens[id].size();
    if (ActsAsSpecial(TypeOf(vocabulary, id)) && bytes > kMaxSpecialBytes) {
      return error("tokens: control or user-defined token ", id, " has ", bytes, " bytes, limit ",
                   kMaxSpecialBytes);
    }
  }
  return absl::OkStatus();
}

}  // namespace

struct Tokenizer::Impl {
  std::vector<std::string> bytes;  // by id
  std::vector<bool> control;       // by id
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<const BytePairEncoder> merger;  // refers to `bytes`
  std::unique_ptr<const SpecialTokens> specials;
  std::vector<uint8_t> missing_bytes;
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  bool adds_bos = false;
  std::vector<TokenId> end_tokens;

  void TakeTokens(const Vocabulary& vocabulary);
  absl::Status BuildMerger(const Vocabulary& vocabulary);
  void FindEndTokens(const Vocabulary& vocabulary);
  void EncodeText(absl::string_view text, std::vector<TokenId>* ids) const;
};

void Tokenizer::Impl::TakeTokens(const Vocabulary& vocabulary) {
  const size_t count = vocabulary.tokens.size();
  bytes.reserve(count);
  control.reserve(count);
  std::vector<SpecialToken> special;
  for (TokenId id = 0; id < count; ++id) {
    const TokenType type = TypeOf(vocabulary, id);
    const std::string& text = vocabulary.tokens[id];
    bytes.push_back(BytesOf(text, type));
    control.push_back(ActsAsControl(type));
    if (ActsAsSpecial(type) && !text.empty()) special.push_back({text, id, ActsAsControl(type)});
  }
  specials = std::make_unique<const SpecialTokens>(std::move(special));
}

absl::Status Tokenizer::Impl::BuildMerger(const Vocabulary& vocabulary) {
  std::vector<MergeableToken> mergeable;
  mergeable.reserve(bytes.size());
  // Merges never make a control token: only what EncodeOptions allow does. Of equal bytes, the normal token
  // counts.
  for (TokenType type : {TokenType::kNormal, TokenType::kUserDefined, TokenType::kByte}) {
    for (TokenId id = 0; id < bytes.size(); ++id) {
      if (TypeOf(vocabulary, id) == type && !bytes[id].empty()) mergeable.push_back({id, bytes[id]});
    }
  }
  auto built = BytePairEncoder::Create(mergeable, vocabulary.merges, pre_tokenizer->ignores_merges());
  if (!built.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(vocabulary.source, ": tokenizer.ggml.merges: ", built.status().message()));
  }
  merger = std::make_unique<const BytePairEncoder>(*std::move(built));
  std::string needed;
  for (int byte = 0; byte < 256; ++byte) {
    if (merger->HasByte(static_cast<uint8_t>(byte))) continue;
    missing_bytes.push_back(static_cast<uint8_t>(byte));
    if (!MayLackToken(static_cast<uint8_t>(byte))) absl::StrAppendFormat(&needed, " %02X", byte);
  }
  if (needed.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(vocabulary.source,
                                                 ": tokenizer.ggml.tokens: not a byte-level ",
                                                 "vocabulary: no token for the bytes", needed));
}

void Tokenizer::Impl::FindEndTokens(const Vocabulary& vocabulary) {
  const auto add = [this](TokenId id) {
    if (std::find(end_tokens.begin(), end_tokens.end(), id) == end_tokens.end()) end_tokens.push_back(id);
  };
  for (const auto& id : {vocabulary.eos, vocabulary.eot, vocabulary.eom}) {
    if (id) add(*id);
  }
  for (TokenId id = 0; id < bytes.size(); ++id) {
    const auto same_text = [&](absl::string_view text) { return text == bytes[id]; };
    if (TypeOf(vocabulary, id) == TokenType::kControl &&
        std::any_of(std::begin(kEndTexts), std::end(kEndTexts), same_text)) {
      add(id);
    }
  }
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromVocabulary(const Vocabulary& vocabulary) {
  RETURN_IF_ERROR(CheckSizes(vocabulary));
  auto pre_tokenizer = PreTokenizer::Create(vocabulary.pre_tokenizer);
  if (!pre_tokenizer.ok()) {
    return absl::Status(
        pre_tokenizer.status().code(),
        absl::StrCat(vocabulary.source, ": tokenizer.ggml.pre: ", pre_tokenizer.status().message()));
  }
  auto impl = std::make_unique<Impl>();
  impl->pre_tokenizer = *std::move(pre_tokenizer);
  impl->TakeTokens(vocabulary);
  RETURN_IF_ERROR(impl->BuildMerger(vocabulary));
  impl->bos = vocabulary.bos;
  impl->eos = vocabulary.eos;
  impl->adds_bos = vocabulary.bos && vocabulary.add_bos.value_or(impl->pre_tokenizer->adds_bos());
  impl->FindEndTokens(vocabulary);
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(const Vocabulary vocabulary, ReadVocabulary(file));
  return FromVocabulary(vocabulary);
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

void Tokenizer::Impl::EncodeText(absl::string_view text, std::vector<TokenId>* ids) const {
  pre_tokenizer->Split(text, [&](absl::string_view piece) { merger->Encode(piece, ids); });
}

std::vector<TokenId> Tokenizer::Encode(absl::string_view text, const EncodeOptions& options) const {
  std::vector<TokenId> ids;
  const bool add_bos = options.add_bos && impl_->adds_bos;
  if (add_bos) ids.push_back(*impl_->bos);
  SpecialTokens::Scanner scanner(*impl_->specials, text, options);
  size_t done = 0;
  while (const auto match = scanner.Next()) {
    impl_->EncodeText(text.substr(done, match->range.begin - done), &ids);
    ids.push_back(match->id);
    done = match->range.end;
  }
  impl_->EncodeText(text.substr(done), &ids);
  if (add_bos && ids.size() > 1 && ids[1] == *impl_->bos) ids.erase(ids.begin());
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const TokenId> ids, bool skip_special) const {
  std::string bytes;
  for (TokenId id : ids) {
    if (!skip_special || !IsControl(id)) bytes += TokenBytes(id);
  }
  return bytes;
}

const std::string& Tokenizer::TokenBytes(TokenId id) const {
  MILLRACE_CHECK(id < impl_->bytes.size());
  return impl_->bytes[id];
}

bool Tokenizer::IsControl(TokenId id) const {
  MILLRACE_CHECK(id < impl_->control.size());
  return impl_->control[id];
}

uint32_t Tokenizer::vocabulary_size() const {
  return static_cast<uint32_t>(impl_->bytes.size());
}
std::optional<TokenId> Tokenizer::bos() const {
  return impl_->bos;
}
bool Tokenizer::adds_bos() const {
  return impl_->adds_bos;
}
absl::Span<const uint8_t> Tokenizer::missing_bytes() const {
  return impl_->missing_bytes;
}
absl::Span<const TokenId> Tokenizer::end_tokens() const {
  return impl_->end_tokens;
}
std::string Tokenizer::bos_text() const {
  return impl_->bos ? TokenBytes(*impl_->bos) : "";
}
std::string Tokenizer::eos_text() const {
  return impl_->eos ? TokenBytes(*impl_->eos) : "";
}

}  // namespace millrace
