#include "model/jinja/format.h"

#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace millrace::jinja {
namespace {

constexpr int kMaxWidth = 10'000;

struct FieldSpec {
  std::string fill = " ";
  bool fill_untrusted = false;  // it stood in a format a user wrote
  char align = '\0';            // < > ^ =, or none
  char sign = '\0';
  int width = 0;
  int precision = -1;
  char type = '\0';
};

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}

// Reads a number; -1 if there is none.
absl::StatusOr<int> ReadCount(Runtime& runtime, absl::string_view text, size_t* p) {
  int count = -1;
  for (; *p < text.size() && IsDigit(text[*p]); ++*p) {
    count = std::max(count, 0) * 10 + (text[*p] - '0');
    if (count > kMaxWidth) return runtime.Error(absl::StrCat("a format width over ", kMaxWidth));
  }
  return count;
}

size_t CountCharacters(const Text& text) {
  size_t count = 0;
  for (size_t p = 0; p < text.size(); p += DecodeCharacter(text.bytes(), p).size) ++count;
  return count;
}

void Pad(const Text& body, const FieldSpec& spec, char default_align, Text* out) {
  size_t length = CountCharacters(body);
  size_t missing = static_cast<size_t>(spec.width) > length ? static_cast<size_t>(spec.width) - length : 0;
  char align = spec.align == '\0' ? default_align : spec.align;
  size_t left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  size_t signs = align == '=' && !body.empty() && (body.bytes()[0] == '-' || body.bytes()[0] == '+') ? 1 : 0;
  out->AppendRange(body, 0, signs);
  for (size_t i = 0; i < left; ++i) out->Append(spec.fill, spec.fill_untrusted);
  out->AppendRange(body, signs, body.size());
  for (size_t i = left; i < missing; ++i) out->Append(spec.fill, spec.fill_untrusted);
}

absl::StatusOr<std::string> NumberText(Runtime& runtime, const Value& value, const FieldSpec& spec) {
  std::string digits;
  bool integral = spec.type == 'd' || spec.type == 'i' || spec.type == 'x' || spec.type == 'u';
  if (integral) {
    std::optional<int64_t> integer = value.integer();
    if (!integer && value.is_float() && std::abs(value.number()) < 9e18)
      integer = static_cast<int64_t>(value.number());
    if (!integer) return runtime.WrongType(value, "a number to format");
    digits = spec.type == 'x' ? absl::StrFormat("%s%x", *integer < 0 ? "-" : "",
                                                *integer < 0 ? -static_cast<uint64_t>(*integer)
                                                             : static_cast<uint64_t>(*integer))
                              : absl::StrCat(*integer);
  } else {
    if (!value.is_number()) return runtime.WrongType(value, "a number to format");
    digits = absl::StrFormat("%.*f", spec.precision < 0 ? 6 : spec.precision, value.number());
  }
  return (spec.sign == '+' || spec.sign == ' ') && digits[0] != '-'
             ? absl::StrCat(std::string(1, spec.sign), digits)
             : digits;
}

Text CutTo(const Text& text, int characters) {
  size_t p = 0;
  for (int i = 0; i < characters && p < text.size(); ++i) p += DecodeCharacter(text.bytes(), p).size;
  return text.Range(0, p);
}

absl::Status AppendField(Runtime& runtime, const Value& value, const FieldSpec& spec, char text_align,
                         Text* out) {
  if (spec.type == 's' || spec.type == 'r') {
    Text body;
    if (spec.type == 'r' && value.text() != nullptr) {
      AppendTextRepr(*value.text(), &body);
    } else {
      RETURN_IF_ERROR(runtime.AppendText(value, &body));
    }
    Pad(spec.precision < 0 ? body : CutTo(body, spec.precision), spec, text_align, out);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::string number, NumberText(runtime, value, spec));
  Pad(Text(number), spec, '>', out);
  return absl::OkStatus();
}

// Reads what stands behind a "%" up to its type letter.
absl::StatusOr<FieldSpec> ReadPercentSpec(Runtime& runtime, absl::string_view text, size_t* p) {
  FieldSpec spec;
  for (; *p < text.size() && absl::string_view("-0+ ").find(text[*p]) != absl::string_view::npos; ++*p) {
    if (text[*p] == '-') spec.align = '<';
    if (text[*p] == '0' && spec.align != '<') spec.align = '=';
    if (text[*p] == '+' || text[*p] == ' ') spec.sign = text[*p];
  }
  ASSIGN_OR_RETURN(int width, ReadCount(runtime, text, p));
  spec.width = std::max(width, 0);
  if (*p < text.size() && text[*p] == '.') {
    ++*p;
    ASSIGN_OR_RETURN(int precision, ReadCount(runtime, text, p));
    spec.precision = std::max(precision, 0);
  }
  if (*p == text.size()) return runtime.Error("a format string ends inside a % field");
  spec.type = text[(*p)++];
  if (absl::string_view("srdiufx").find(spec.type) == absl::string_view::npos) {
    return runtime.Error(absl::StrCat("the format %", std::string(1, spec.type), " is not supported"));
  }
  if (spec.align == '=' && spec.type != 's' && spec.type != 'r') spec.fill.assign(1, '0');
  return spec;
}

// [[fill]align][sign][0][width][.precision][type]
absl::StatusOr<FieldSpec> ReadBraceSpec(Runtime& runtime, absl::string_view text) {
  FieldSpec spec;
  auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  size_t p = 0;
  if (!text.empty()) {
    size_t fill = DecodeCharacter(text, 0).size;
    if (fill < text.size() && is_align(text[fill])) {
      spec.fill = std::string(text.substr(0, fill));
      spec.align = text[fill];
      p = fill + 1;
    } else if (is_align(text[0])) {
      spec.align = text[0];
      p = 1;
    }
  }
  if (p < text.size() && (text[p] == '+' || text[p] == ' ' || text[p] == '-')) spec.sign = text[p++];
  if (p < text.size() && text[p] == '0' && spec.align == '\0') {
    spec.align = '=';
    spec.fill.assign(1, '0');
  }
  ASSIGN_OR_RETURN(int width, ReadCount(runtime, text, &p));
  spec.width = std::max(width, 0);
  if (p < text.size() && text[p] == '.') {
    ++p;
    ASSIGN_OR_RETURN(spec.precision, ReadCount(runtime, text, &p));
  }
  if (p < text.size()) spec.type = text[p++];
  if (p < text.size() ||
      absl::string_view("sdfx").find(spec.type == '\0' ? 's' : spec.type) == absl::string_view::npos) {
    return runtime.Error(absl::StrCat("the format {:", text, "} is not supported"));
  }
  return spec;
}

// Where the values of {} {0} {name} come from.
class BraceValues {
 public:
  BraceValues(Runtime& runtime, const Arguments& arguments) : runtime_(runtime), arguments_(arguments) {}

  absl::StatusOr<Value> Find(absl::string_view name) {
    uint32_t index = 0;
    if (name.empty()) {
      index = next_++;
    } else if (!absl::SimpleAtoi(name, &index)) {
      for (const auto& [keyword, value] : arguments_.keywords) {
        if (keyword == name) return value;
      }
      return runtime_.Error(absl::StrCat("format: no argument named '", name, "'"));
    }
    if (index < arguments_.positional.size()) return arguments_.positional[index];
    return runtime_.Error(absl::StrCat("format: no argument number ", index));
  }

 private:
  Runtime& runtime_;
  const Arguments& arguments_;
  uint32_t next_ = 0;
};

absl::Status AppendBraceField(Runtime& runtime, const Text& format_field, BraceValues* values, Text* out) {
  absl::string_view field = format_field.bytes();
  size_t colon = field.find(':');
  absl::string_view name = field.substr(0, colon);
  bool repr = name.size() >= 2 && name.substr(name.size() - 2) == "!r";
  if (repr) name.remove_suffix(2);
  ASSIGN_OR_RETURN(Value value, values->Find(name));
  FieldSpec spec;
  if (colon != absl::string_view::npos) {
    ASSIGN_OR_RETURN(spec, ReadBraceSpec(runtime, field.substr(colon + 1)));
    spec.fill_untrusted = !format_field.untrusted().empty();
  }
  bool number = value.is_number() && !value.is_bool();
  if (spec.type == '\0' && number && spec.precision >= 0)
    return runtime.Error("format: a precision without a type");
  char text_align = spec.type == '\0' && number ? '>' : '<';
  if (spec.type == '\0') spec.type = repr ? 'r' : 's';
  return AppendField(runtime, value, spec, text_align, out);
}

}  // namespace

absl::StatusOr<Text> FormatPercent(Runtime& runtime, const Text& format, const Value& values) {
  const List* tuple =
      values.list() != nullptr && values.list()->kind == ListKind::kTuple ? values.list() : nullptr;
  size_t count = tuple == nullptr ? 1 : tuple->items.size();
  size_t next = 0;
  Text out;
  absl::string_view bytes = format.bytes();
  for (size_t p = 0; p < bytes.size();) {
    size_t percent = std::min(bytes.find('%', p), bytes.size());
    out.AppendRange(format, p, percent);
    if ((p = percent) == bytes.size()) break;
    RETURN_IF_ERROR(runtime.Step());
    if (p + 1 < bytes.size() && bytes[p + 1] == '%') {
      out.AppendRange(format, p, p + 1);
      p += 2;
      continue;
    }
    ++p;
    ASSIGN_OR_RETURN(FieldSpec spec, ReadPercentSpec(runtime, bytes, &p));
    if (next == count) return runtime.Error("not enough values for the % fields of a format string");
    RETURN_IF_ERROR(AppendField(runtime, tuple == nullptr ? values : tuple->items[next], spec, '>', &out));
    ++next;
  }
  if (next < count && (tuple != nullptr || values.dict() == nullptr)) {
    return runtime.Error("more values than % fields in a format string");
  }
  return out;
}

absl::StatusOr<Text> FormatBraces(Runtime& runtime, const Text& format, const Arguments& arguments) {
  BraceValues values(runtime, arguments);
  Text out;
  absl::string_view bytes = format.bytes();
  for (size_t p = 0; p < bytes.size();) {
    size_t brace = std::min(bytes.find_first_of("{}", p), bytes.size());
    out.AppendRange(format, p, brace);
    if ((p = brace) == bytes.size()) break;
    RETURN_IF_ERROR(runtime.Step());
    if (p + 1 < bytes.size() && bytes[p + 1] == bytes[p]) {
      out.AppendRange(format, p, p + 1);
      p += 2;
      continue;
    }
    size_t close = bytes.find('}', p);
    if (bytes[p] == '}' || close == absl::string_view::npos) return runtime.Error("format: a single { or }");
    RETURN_IF_ERROR(AppendBraceField(runtime, format.Range(p + 1, close), &values, &out));
    p = close + 1;
  }
  return out;
}

}  // namespace millrace::jinja
