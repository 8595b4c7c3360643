// Tokens to text while they are generated: whole UTF-8 characters only, and nothing past a stop string.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "model/tokenizer.h"

namespace millrace {

// One sequence's output text. Thread: text.
//
// Tokens go in one at a time; text comes out when it is certain: an incomplete UTF-8 character and a possible beginning of a
// stop string are held back, and the tokens that carry them with it. Bytes that can never become valid UTF-8 come out as
// U+FFFD. Control tokens give no text.
class StreamDetokenizer {
 public:
  // `tokenizer` outlives this. `stops`: none empty.
  StreamDetokenizer(const Tokenizer* tokenizer, std::vector<std::string> stops);

  struct Step {
    size_t released_tokens = 0;      // how many of the oldest held tokens are now certain
    std::string text;                // their text
    std::optional<size_t> matched_stop;  // index into stops: the sequence ends with this token; text ends before the match
  };
  // `match_stops`: false while min_tokens is not reached (a match must then lie wholly in later text).
  // REQUIRES: no earlier step matched.
  Step Push(TokenId token, bool match_stops = true);

  // The end of the sequence without a stop string: everything held comes out (an incomplete character as U+FFFD).
  Step Flush();

 private:
  const Tokenizer* tokenizer_;
  std::vector<std::string> stops_;
  std::string held_;            // bytes pushed and not yet released
  size_t match_from_ = 0;       // in held_: a match may begin here
  size_t held_tokens_ = 0;
};

// Number of Unicode characters in valid UTF-8.
size_t CountCharacters(absl::string_view utf8);

}  // namespace millrace
