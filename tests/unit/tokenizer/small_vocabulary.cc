#include "tests/unit/tokenizer/small_vocabulary.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "model/byte_alphabet.h"

namespace millrace {

Vocabulary SmallVocabulary() {
  Vocabulary vocabulary;
  vocabulary.source = "small";
  vocabulary.pre_tokenizer = "gpt-2";
  vocabulary.tokens.assign(ByteSpellings().begin(), ByteSpellings().end());
  vocabulary.types.assign(256, TokenType::kNormal);
  const auto add = [&](const std::string& text, TokenType type) {
    vocabulary.tokens.push_back(text);
    vocabulary.types.push_back(type);
  };
  const std::string space = ByteSpellings()[' '];
  const std::pair<std::string, std::string> merges[] = {
      {"h", "e"}, {"l", "l"},   {"ll", "o"}, {"he", "llo"}, {space, "hello"},
      {"a", "a"}, {"aa", "aa"}, {"1", "1"},  {"11", "1"},
  };
  for (const auto& [left, right] : merges) {
    vocabulary.merges.push_back(left + " " + right);
    add(left + right, TokenType::kNormal);
  }
  for (const char* text : {"<bos>", "<|im_end|>", "<|im_start|>", "<|im_start|>x"})
    add(text, TokenType::kControl);
  add("<unk>", TokenType::kUnknown);
  add("[[tag]]", TokenType::kUserDefined);
  vocabulary.bos = IdOf(vocabulary, "<bos>");
  vocabulary.eos = IdOf(vocabulary, "<|im_end|>");
  return vocabulary;
}

std::unique_ptr<Tokenizer> SmallTokenizer() {
  auto tokenizer = Tokenizer::FromVocabulary(SmallVocabulary());
  MILLRACE_CHECK(tokenizer.ok());
  return *std::move(tokenizer);
}

TokenId IdOf(const Vocabulary& vocabulary, absl::string_view text) {
  const auto found = std::find(vocabulary.tokens.begin(), vocabulary.tokens.end(), text);
  MILLRACE_CHECK(found != vocabulary.tokens.end());
  return static_cast<TokenId>(found - vocabulary.tokens.begin());
}

std::vector<std::string> Pieces(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::vector<std::string> pieces;
  for (TokenId id : ids) pieces.push_back(tokenizer.TokenBytes(id));
  return pieces;
}

}  // namespace millrace
