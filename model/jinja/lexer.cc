#include "model/jinja/lexer.h"

#include <charconv>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/string_literal.h"
#include "model/jinja/text.h"

namespace millrace::jinja {
namespace {

constexpr size_t kNone = absl::string_view::npos;

std::string NormalizeNewlines(absl::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsNameByte(char c) {
  return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<uint8_t>(c) >= 0x80;
}

class Lexer {
 public:
  explicit Lexer(absl::string_view source) : source_(NormalizeNewlines(source)), view_(source_) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (position_ < view_.size()) {
      RETURN_IF_ERROR(LexDataAndTag());
    }
    Add(TokenKind::kEnd);
    return std::move(tokens_);
  }

 private:
  absl::Status LexDataAndTag();
  void AddData(size_t end, char sign, bool is_variable);
  absl::Status LexComment();
  absl::Status LexRaw();
  absl::Status LexTag(bool is_variable);
  absl::Status LexTagToken();
  bool LexNumber();
  absl::Status LexInteger(size_t begin, int base);
  absl::Status LexString(char quote);
  absl::Status LexOperator();
  absl::Status Balance(char op);
  std::optional<size_t> TagEnd(absl::string_view close, size_t at) const;
  std::optional<size_t> RawBegin(size_t at) const;
  std::optional<size_t> RawEnd(size_t at, char* sign) const;

  bool At(size_t position, absl::string_view text) const {
    return absl::StartsWith(view_.substr(std::min(position, view_.size())), text);
  }
  void Add(TokenKind kind, std::string text = "") { tokens_.push_back({kind, line_, std::move(text)}); }
  void MoveTo(size_t position) {
    for (; position_ < position; ++position_) line_ += source_[position_] == '\n';
    line_starting_ = position > 0 && source_[position - 1] == '\n';
  }

  const std::string source_;
  const absl::string_view view_;
  size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the last thing taken ended with a newline
  std::string open_brackets_;  // the closers awaited inside a tag
  std::vector<Token> tokens_;
};

// The end of `{% raw %}` when it begins at `at`.
std::optional<size_t> Lexer::RawBegin(size_t at) const {
  if (!At(at, "{%")) return std::nullopt;
  size_t p = at + 2;
  if (At(p, "-") || At(p, "+")) ++p;
  p = SkipSpace(view_, p);
  if (!At(p, "raw")) return std::nullopt;
  p = SkipSpace(view_, p + 3);
  if (At(p, "-%}")) return SkipSpace(view_, p + 3);
  if (At(p, "%}")) return p + 2;
  return std::nullopt;
}

std::optional<size_t> Lexer::RawEnd(size_t at, char* sign) const {
  size_t p = at + 2;
  *sign = At(p, "-") || At(p, "+") ? view_[p] : '\0';
  if (*sign != '\0') ++p;
  p = SkipSpace(view_, p);
  if (!At(p, "endraw")) return std::nullopt;
  return TagEnd("%}", SkipSpace(view_, p + 6));
}

// The position behind a closer at `at` and the white space it takes with it.
std::optional<size_t> Lexer::TagEnd(absl::string_view close, size_t at) const {
  bool trims_newline = close != "}}";
  if (At(at, "-") && At(at + 1, close)) return SkipSpace(view_, at + 1 + close.size());
  if (trims_newline && At(at, "+") && At(at + 1, close)) return at + 1 + close.size();
  if (!At(at, close)) return std::nullopt;
  size_t end = at + close.size();
  return trims_newline && At(end, "\n") ? end + 1 : end;
}

// Emits the text up to `end`, where a tag with this strip sign begins.
void Lexer::AddData(size_t end, char sign, bool is_variable) {
  absl::string_view text = view_.substr(position_, end - position_);
  size_t length = text.size();
  if (sign == '-') {
    length = TrimmedEnd(text);
  } else if (sign != '+' && !is_variable) {
    size_t last_newline = text.rfind('\n');
    size_t line_begin = last_newline == kNone ? 0 : last_newline + 1;
    bool starts_line = last_newline != kNone || line_starting_;
    if (starts_line && SkipSpace(text, line_begin) == text.size()) length = line_begin;
  }
  if (length > 0) Add(TokenKind::kData, std::string(text.substr(0, length)));
  MoveTo(end);
}

absl::Status Lexer::LexDataAndTag() {
  size_t begin = position_;
  do {
    begin = view_.find('{', begin);
    if (begin == kNone) break;
    if (At(begin + 1, "{") || At(begin + 1, "%") || At(begin + 1, "#")) break;
    ++begin;
  } while (true);
  if (begin == kNone) {
    Add(TokenKind::kData, std::string(view_.substr(position_)));
    MoveTo(view_.size());
    return absl::OkStatus();
  }
  char type = view_[begin + 1];
  char sign = At(begin + 2, "-") || At(begin + 2, "+") ? view_[begin + 2] : '\0';
  AddData(begin, sign, type == '{');
  if (auto raw = RawBegin(begin)) {
    MoveTo(*raw);
    return LexRaw();
  }
  size_t inside = begin + 2 + (sign != '\0');
  if (type == '#') {
    MoveTo(inside);
    return LexComment();
  }
  Add(type == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin);
  MoveTo(inside);
  return LexTag(type == '{');
}

absl::Status Lexer::LexComment() {
  size_t close = view_.find("#}", position_);
  if (close == kNone) return TemplateError(line_, "missing end of comment tag");
  // The sign belongs to the closer unless it is the opener's.
  if (close > position_ && (view_[close - 1] == '-' || view_[close - 1] == '+')) --close;
  MoveTo(*TagEnd("#}", close));
  return absl::OkStatus();
}

absl::Status Lexer::LexRaw() {
  for (size_t at = view_.find("{%", position_); at != kNone; at = view_.find("{%", at + 1)) {
    char sign = '\0';
    if (auto end = RawEnd(at, &sign)) {
      AddData(at, sign, false);
      MoveTo(*end);
      return absl::OkStatus();
    }
  }
  return TemplateError(line_, "missing end of raw directive");
}

absl::Status Lexer::LexTag(bool is_variable) {
  absl::string_view close = is_variable ? "}}" : "%}";
  open_brackets_.clear();
  while (position_ < view_.size()) {
    if (open_brackets_.empty()) {
      if (auto end = TagEnd(close, position_)) {
        Add(is_variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd);
        MoveTo(*end);
        return absl::OkStatus();
      }
    }
    size_t next = SkipSpace(view_, position_);
    if (next != position_) {
      MoveTo(next);
    } else {
      RETURN_IF_ERROR(LexTagToken());
    }
  }
  return absl::OkStatus();  // the parser reports the missing end where it meets kEnd
}

absl::Status Lexer::LexTagToken() {
  char c = view_[position_];
  if (IsDigit(c)) {
    if (LexNumber()) return absl::OkStatus();
    char kind = position_ + 1 < view_.size() ? static_cast<char>(view_[position_ + 1] | 0x20) : ' ';
    int base = c != '0' ? 10 : kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
    return LexInteger(position_, base);
  }
  if (IsNameByte(c)) {
    size_t end = position_;
    while (end < view_.size() && IsNameByte(view_[end]) && !IsSpace(DecodeCharacter(view_, end).code)) ++end;
    Add(TokenKind::kName, std::string(view_.substr(position_, end - position_)));
    MoveTo(end);
    return absl::OkStatus();
  }
  if (c == '\'' || c == '"') return LexString(c);
  return LexOperator();
}

// A float has a fraction, an exponent or both; anything else is left to LexInteger.
bool Lexer::LexNumber() {
  if (position_ > 0 && view_[position_ - 1] == '.') return false;
  auto digits = [this](size_t p) {
    while (p < view_.size() &&
           (IsDigit(view_[p]) || (view_[p] == '_' && p + 1 < view_.size() && IsDigit(view_[p + 1]))))
      ++p;
    return p;
  };
  size_t end = digits(position_);
  size_t integer_end = end;
  if (At(end, ".") && end + 1 < view_.size() && IsDigit(view_[end + 1])) end = digits(end + 1);
  if (At(end, "e") || At(end, "E")) {
    size_t exponent = end + 1 + (At(end + 1, "+") || At(end + 1, "-"));
    if (exponent < view_.size() && IsDigit(view_[exponent])) end = digits(exponent);
  }
  if (end == integer_end) return false;
  std::string plain;
  for (char c : view_.substr(position_, end - position_)) {
    if (c != '_') plain.push_back(c);
  }
  double number = 0;
  auto result = std::from_chars(plain.data(), plain.data() + plain.size(), number);
  if (result.ec == std::errc::result_out_of_range) {
    // Python reads 1e999 as infinity and 1e-999 as zero.
    number = absl::StrContains(plain, "e-") || absl::StrContains(plain, "E-")
                 ? 0
                 : std::numeric_limits<double>::infinity();
  }
  Add(TokenKind::kFloat);
  tokens_.back().number = number;
  MoveTo(end);
  return true;
}

absl::Status Lexer::LexInteger(size_t begin, int base) {
  size_t p = base == 10 ? begin : begin + 2;
  auto value_of = [](char c) {
    return IsDigit(c) ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : 99;
  };
  std::string plain;
  for (; p < view_.size() && (view_[p] == '_' || value_of(view_[p]) < base); ++p) {
    if (view_[p] != '_') plain.push_back(view_[p]);
  }
  if (plain.empty()) return TemplateError(line_, "a number without digits");
  if (base == 10 && plain.size() > 1 && plain[0] == '0' &&
      plain.find_first_not_of('0') != std::string::npos) {
    return TemplateError(line_, absl::StrCat("a number must not start with 0: ", plain));
  }
  Add(TokenKind::kInteger, plain);
  auto result = std::from_chars(plain.data(), plain.data() + plain.size(), tokens_.back().integer, base);
  if (result.ec != std::errc())
    return TemplateError(line_, absl::StrCat("the number ", plain, " exceeds 64 bits"));
  MoveTo(p);
  return absl::OkStatus();
}

absl::Status Lexer::LexString(char quote) {
  size_t end = position_ + 1;
  while (end < view_.size() && view_[end] != quote) end += view_[end] == '\\' ? 2 : 1;
  if (end >= view_.size()) return TemplateError(line_, "a string without its closing quote");
  absl::StatusOr<std::string> value = UnescapeLiteral(view_.substr(position_ + 1, end - position_ - 1));
  if (!value.ok()) return TemplateError(line_, value.status().message());
  Add(TokenKind::kString, *std::move(value));
  MoveTo(end + 1);
  return absl::OkStatus();
}

absl::Status Lexer::Balance(char op) {
  if (op == '(') open_brackets_.push_back(')');
  if (op == '[') open_brackets_.push_back(']');
  if (op == '{') open_brackets_.push_back('}');
  if (op != ')' && op != ']' && op != '}') return absl::OkStatus();
  if (open_brackets_.empty())
    return TemplateError(line_, absl::StrCat("unexpected '", std::string(1, op), "'"));
  char expected = open_brackets_.back();
  open_brackets_.pop_back();
  if (expected == op) return absl::OkStatus();
  return TemplateError(line_, absl::StrCat("unexpected '", std::string(1, op), "', expected '",
                                           std::string(1, expected), "'"));
}

absl::Status Lexer::LexOperator() {
  static constexpr absl::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                     "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                     ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
  for (absl::string_view op : kOperators) {
    if (!At(position_, op)) continue;
    if (op.size() == 1) RETURN_IF_ERROR(Balance(op[0]));
    Add(TokenKind::kOperator, std::string(op));
    MoveTo(position_ + op.size());
    return absl::OkStatus();
  }
  return TemplateError(line_, absl::StrCat("unexpected character '", std::string(1, view_[position_]), "'"));
}

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return absl::InvalidArgumentError(absl::StrCat("chat template: ", source.size(),
                                                   " bytes of source, limit ", kMaxSourceBytes,
                                                   "; the model file's template is unusable"));
  }
  return Lexer(source).Run();
}

absl::Status TemplateError(int line, absl::string_view message) {
  constexpr size_t kMaxMessageBytes = 500;
  std::string one_line(message.substr(0, kMaxMessageBytes));
  for (char& c : one_line) {
    if (static_cast<uint8_t>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return absl::InvalidArgumentError(absl::StrCat("chat template line ", line, ": ", one_line));
}

}  // namespace millrace::jinja
