// A byte-level vocabulary small enough to reason about by hand.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "model/tokenizer.h"
#include "model/vocabulary.h"

namespace millrace {

// Ids 0 to 255: the bytes. Then, in this order: he, ll, llo, hello, " hello", aa, aaaa, 11, 111 (each with a
// merge), then control tokens <bos>, <|im_end|>, <|im_start|>, <|im_start|>x, <unk>, and the user-defined
// [[tag]].
Vocabulary SmallVocabulary();

// The tokenizer of that vocabulary; dies if it is refused.
std::unique_ptr<Tokenizer> SmallTokenizer();

// The id of the token spelt `text` in the file; dies if there is none.
TokenId IdOf(const Vocabulary& vocabulary, absl::string_view text);

// The bytes of each token.
std::vector<std::string> Pieces(const Tokenizer& tokenizer, const std::vector<TokenId>& ids);

}  // namespace millrace
