// The tokens of a template with a cursor, for the two halves of the parser.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/jinja/lexer.h"

namespace millrace::jinja {

class TokenStream {
 public:
  // REQUIRES: the last token is kEnd.
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[at_]; }
  const Token& next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  int line() const { return current().line; }
  void Advance() { at_ = std::min(at_ + 1, tokens_.size() - 1); }
  Token Take() {
    Token token = tokens_[at_];
    Advance();
    return token;
  }
  bool Is(TokenKind kind) const { return current().kind == kind; }
  bool Is(TokenKind kind, absl::string_view text) const { return Is(kind) && current().text == text; }
  bool IsOperator(absl::string_view text) const { return Is(TokenKind::kOperator, text); }
  bool IsName(absl::string_view text) const { return Is(TokenKind::kName, text); }
  bool SkipOperator(absl::string_view text) { return IsOperator(text) && (Advance(), true); }
  bool SkipName(absl::string_view text) { return IsName(text) && (Advance(), true); }

  absl::Status ExpectOperator(absl::string_view text) {
    return SkipOperator(text) ? absl::OkStatus() : Unexpected(absl::StrCat("'", text, "'"));
  }
  absl::Status ExpectName(absl::string_view text) {
    return SkipName(text) ? absl::OkStatus() : Unexpected(absl::StrCat("'", text, "'"));
  }
  absl::Status Expect(TokenKind kind) {
    if (!Is(kind))
      return Unexpected(kind == TokenKind::kBlockEnd ? "end of statement block" : "end of print statement");
    Advance();
    return absl::OkStatus();
  }
  absl::Status Unexpected(absl::string_view wanted) const {
    return TemplateError(line(), absl::StrCat("expected ", wanted, ", got ", Describe(current())));
  }
  static std::string Describe(const Token& token) {
    constexpr absl::string_view kNames[] = {"text",
                                            "begin of print statement",
                                            "end of print statement",
                                            "begin of statement block",
                                            "end of statement block",
                                            "",
                                            "a string",
                                            "",
                                            "a number",
                                            "",
                                            "the end of the template"};
    absl::string_view name = kNames[static_cast<size_t>(token.kind)];
    return name.empty() ? absl::StrCat("'", token.text, "'") : std::string(name);
  }

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
};

}  // namespace millrace::jinja
