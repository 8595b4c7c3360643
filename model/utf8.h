// UTF-8 as The Unicode Standard, table 3-7 defines it: no surrogates, no overlong forms, nothing past
// U+10FFFF.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace {

// What stands at the beginning of some bytes.
struct Utf8Unit {
  enum Kind {
    kCharacter,   // a whole character of `length` bytes
    kIncomplete,  // all bytes there are (`length` of them) begin a character; more bytes may complete it
    kInvalid,  // `length` bytes can never become a character: a maximal subpart, to be replaced by one U+FFFD
  };
  Kind kind;
  size_t length;  // >= 1
};

// REQUIRES: bytes not empty.
Utf8Unit NextUtf8(absl::string_view bytes);

// Length of the longest prefix that is valid UTF-8.
size_t ValidUtf8Prefix(absl::string_view bytes);

// U+FFFD, the replacement character.
inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Every maximal subpart that is no character becomes one U+FFFD (The Unicode Standard, 3.9, best practice).
std::string ReplaceInvalidUtf8(absl::string_view bytes);

}  // namespace millrace
