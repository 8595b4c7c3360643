// Python's string methods over tainted text: every character of a result is as trusted as the one it came
// from.
#pragma once

#include <cstdint>
#include <vector>

#include "model/jinja/text.h"

namespace millrace::jinja {

enum class Side { kLeft, kRight, kBoth };
// `characters`: the set to strip; null: white space.
Text Strip(const Text& text, const Text* characters, Side side);

// At most `count` replacements from the left; negative: all.
Text Replace(const Text& text, const Text& from, const Text& to, int64_t count);

// The splits stop at this many pieces: their caller charges one step for each, and so fails.
inline constexpr size_t kMaxPieces = 1 << 20;

// At most `limit` cuts (negative: all), from the left or the right. REQUIRES: a separator that is not empty.
std::vector<Text> SplitBy(const Text& text, absl::string_view separator, int64_t limit, bool from_right);
// Cuts at runs of white space.
std::vector<Text> SplitBlanks(const Text& text, int64_t limit, bool from_right);
// Cuts behind "\n", "\r", "\r\n" and Python's other line boundaries, without them unless `keep_ends`.
std::vector<Text> SplitLines(const Text& text, bool keep_ends);

// Byte position of the first (last) occurrence at or after `begin`, or npos.
size_t FindBytes(absl::string_view text, absl::string_view part, size_t begin);
size_t FindLastBytes(absl::string_view text, absl::string_view part);

Text Lower(const Text& text);
Text Upper(const Text& text);
Text Capitalize(const Text& text);  // str.capitalize
Text Title(const Text& text);       // str.title
Text TitleWords(const Text& text);  // jinja2's title filter, which looks for blanks and brackets

}  // namespace millrace::jinja
