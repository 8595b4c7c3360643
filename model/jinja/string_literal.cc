#include "model/jinja/string_literal.h"

#include <charconv>

#include "absl/strings/str_cat.h"
#include "model/jinja/text.h"

namespace millrace::jinja {
namespace {

// Reads `count` hexadecimal digits at `*position`.
absl::StatusOr<char32_t> HexEscape(absl::string_view body, size_t* position, size_t count) {
  if (body.size() - *position < count) return absl::InvalidArgumentError("a cut-off \\ escape in a string");
  uint32_t code = 0;
  const char* begin = body.data() + *position;
  auto result = std::from_chars(begin, begin + count, code, 16);
  if (result.ec != std::errc() || result.ptr != begin + count) {
    return absl::InvalidArgumentError("a \\x, \\u or \\U escape without its hexadecimal digits");
  }
  if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the escape ", absl::Hex(code), " is no Unicode character"));
  }
  *position += count;
  return static_cast<char32_t>(code);
}

char32_t OctalEscape(absl::string_view body, size_t* position) {
  char32_t code = 0;
  for (int i = 0; i < 3 && *position < body.size() && body[*position] >= '0' && body[*position] <= '7'; ++i) {
    code = code * 8 + static_cast<char32_t>(body[(*position)++] - '0');
  }
  return code;
}

// The characters of one-letter escapes, in pairs of letter and meaning.
char SimpleEscape(char letter) {
  constexpr absl::string_view kPairs = "n\nt\tr\r\\\\''\"\"a\ab\bf\fv\v";
  for (size_t i = 0; i < kPairs.size(); i += 2) {
    if (kPairs[i] == letter) return kPairs[i + 1];
  }
  return '\0';
}

}  // namespace

absl::StatusOr<std::string> UnescapeLiteral(absl::string_view body) {
  std::string out;
  for (size_t p = 0; p < body.size();) {
    if (body[p] != '\\') {
      out.push_back(body[p++]);
      continue;
    }
    if (++p == body.size()) return absl::InvalidArgumentError("\\ at the end of a string");
    char letter = body[p];
    if (char simple = SimpleEscape(letter)) {
      out.push_back(simple);
      ++p;
    } else if (letter == '\n') {
      ++p;
    } else if (letter == 'x' || letter == 'u' || letter == 'U') {
      ++p;
      auto code = HexEscape(body, &p, letter == 'x' ? 2 : letter == 'u' ? 4 : 8);
      if (!code.ok()) return code.status();
      AppendUtf8(*code, &out);
    } else if (letter >= '0' && letter <= '7') {
      AppendUtf8(OctalEscape(body, &p), &out);
    } else if (letter == 'N') {
      return absl::InvalidArgumentError("escapes by character name are not supported");
    } else {
      out.push_back('\\');  // Python leaves what it does not know as it stands
    }
  }
  return out;
}

}  // namespace millrace::jinja
