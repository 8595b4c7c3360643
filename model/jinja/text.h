// Strings of a template run: UTF-8 bytes that remember which of them a user wrote.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "model/tokenizer.h"

namespace millrace::jinja {

inline constexpr size_t kMaxTextBytes = 16 << 20;

// Bytes plus the ranges of them that are untrusted. Positions are byte offsets. Past kMaxTextBytes nothing is
// appended any more and too_long() turns true: the one who makes a value of it reports that. Thread: one
// owner while it changes.
class Text {
 public:
  Text() = default;
  explicit Text(absl::string_view bytes, bool untrusted = false) { Append(bytes, untrusted); }

  const std::string& bytes() const { return bytes_; }
  const std::vector<TextRange>& untrusted() const { return untrusted_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  bool too_long() const { return too_long_; }
  size_t memory() const { return bytes_.capacity() + untrusted_.capacity() * sizeof(TextRange); }

  void Append(absl::string_view bytes, bool untrusted = false);
  void Append(const Text& other) { AppendRange(other, 0, other.size()); }
  // REQUIRES: begin <= end <= other.size(), other is not this.
  void AppendRange(const Text& other, size_t begin, size_t end);
  Text Range(size_t begin, size_t end) const;
  // REQUIRES: position < size().
  bool IsUntrusted(size_t position) const;

 private:
  bool Reserve(size_t more);
  void MarkUntrusted(size_t begin, size_t end);

  std::string bytes_;
  std::vector<TextRange> untrusted_;  // sorted, disjoint, never adjacent, never empty
  bool too_long_ = false;
};

// A character of a string as Python counts them. A byte that is no UTF-8 is a character of its own (0xDC00 +
// byte).
struct Character {
  char32_t code;
  size_t size;  // in bytes
};
// REQUIRES: position < bytes.size().
Character DecodeCharacter(absl::string_view bytes, size_t position);
void AppendUtf8(char32_t code, std::string* out);

// Unicode white space as Python's str.isspace has it.
bool IsSpace(char32_t code);
// The first position at or after `position` that is no white space.
size_t SkipSpace(absl::string_view bytes, size_t position);
// The position behind the last character that is no white space.
size_t TrimmedEnd(absl::string_view bytes);

enum class CaseForm { kLower, kUpper, kTitle };
// Full mapping of one character (up to three), without the context rule of the final sigma.
void AppendCase(char32_t code, CaseForm form, std::string* out);
bool IsCased(char32_t code);

}  // namespace millrace::jinja
