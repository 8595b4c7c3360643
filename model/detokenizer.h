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
// Tokens go in one at a time; text comes out when it is certain: an incomplete UTF-8 character and a possible
// beginning of a stop string are held back, and the tokens that carry them with it. Bytes that can never
// become valid UTF-8 come out as U+FFFD. Control tokens give no text. Stops are sought in the text as it
// comes out, over token borders.
//
// Of several stops, after each token: the match that begins earliest, then the longest. A stop that is whole
// ends the sequence at once, even if a longer one with an earlier beginning might still come about.
class StreamDetokenizer {
 public:
  // `tokenizer` outlives this. `stops`: none empty, valid UTF-8.
  StreamDetokenizer(const Tokenizer* tokenizer, std::vector<std::string> stops);

  struct Step {
    size_t released_tokens = 0;  // how many of the oldest held tokens are now certain
    std::string text;            // their text
    // Index into stops: the sequence ends with this token; text ends before the match. All held tokens are
    // released, those of the match too.
    std::optional<size_t> matched_stop;
  };
  // `match_stops`: false while min_tokens is not reached (a match must then lie wholly in later text).
  // REQUIRES: no earlier step matched.
  Step Push(TokenId token, bool match_stops = true);

  // The end of the sequence without a stop string: everything held comes out (an incomplete character as
  // U+FFFD).
  Step Flush();

 private:
  struct Match {
    size_t begin;  // in text_
    size_t stop;   // index into stops_
  };

  void Append(absl::string_view bytes);
  std::optional<Match> FindStop() const;
  size_t CertainBytes() const;
  Step Release(size_t tokens);

  const Tokenizer* tokenizer_;
  std::vector<std::string> stops_;
  size_t longest_stop_ = 0;
  std::string text_;                // whole characters pushed and not yet released
  std::string partial_;             // bytes behind text_ that begin a character
  std::vector<size_t> token_ends_;  // where in text_ each held token ends; kOpen: in partial_
  size_t match_from_ = 0;           // in text_: a match may begin here
  bool partial_may_match_ = true;   // whether a match may begin with the character in partial_
};

// Number of Unicode characters in valid UTF-8.
size_t CountCharacters(absl::string_view utf8);

}  // namespace millrace
