// Cuts a template into tokens, with the white space rules of trim_blocks and lstrip_blocks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::jinja {

inline constexpr size_t kMaxSourceBytes = 256 << 10;

enum class TokenKind : uint8_t {
  kData,  // text between tags, white space control already applied
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  int line;          // of its first character, from 1
  std::string text;  // of data, names, strings (unescaped) and operators
  int64_t integer = 0;
  double number = 0;
};

// INVALID_ARGUMENT with the line; the last token is kEnd. Follows jinja2's lexer: newlines become "\n", one
// at the very end is dropped.
absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source);

// The one form of every error about a template.
absl::Status TemplateError(int line, absl::string_view message);

}  // namespace millrace::jinja
