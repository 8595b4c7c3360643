// Texts and the ids that another tokenizer gives for them.
#pragma once

#include <string>
#include <vector>

#include "common/ids.h"
#include "model/tokenizer.h"

namespace millrace {

struct TokenizerCase {
  std::string text;
  std::vector<TokenId> ids;
};

// What tests/golden/make_tokenizer_golden.py wrote. Empty, with a test failure, if it cannot be read.
std::vector<TokenizerCase> ReadTokenizerCases(const std::string& path);

// Numbers with white space between.
std::vector<TokenId> ParseIds(const std::string& line);

// The tokenizer of a GGUF file. Null, with a test failure, if it cannot be read.
std::unique_ptr<Tokenizer> OpenTokenizer(const std::string& path);

// The value of an environment variable that names test data. Empty, with a test failure, if it is not set.
std::string RequireEnvironment(const char* name, const char* what);

// No BOS in front; control tokens as given.
EncodeOptions PlainOptions(bool parse_special);

// Every case must give its ids, and these its text again but for bytes that the vocabulary lacks.
void ExpectCases(const Tokenizer& tokenizer, const std::vector<TokenizerCase>& cases, bool parse_special);

}  // namespace millrace
