// Values as text: Python's str(), repr() and json.dumps().
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {
namespace {

// Control characters and separators that Python escapes in repr(); other unprintable characters are printed.
bool IsEscapedInRepr(char32_t code) {
  return code < 0x20 || (code >= 0x7F && code <= 0xA0) || code == 0xAD ||
         (code >= 0xDC80 && code <= 0xDCFF) || (code >= 0x80 && IsSpace(code));
}

std::string ReprEscape(char32_t code) {
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  if (code == '\t') return "\\t";
  if (code <= 0xFF) return absl::StrFormat("\\x%02x", static_cast<uint32_t>(code));
  return absl::StrFormat("\\u%04x", static_cast<uint32_t>(code));
}

std::string JsonEscape(char32_t code) {
  constexpr absl::string_view kPairs = "\"\"\\\\\nn\rr\tt\bb\ff";
  for (size_t i = 0; i < kPairs.size(); i += 2) {
    if (static_cast<char32_t>(kPairs[i]) == code) return {'\\', kPairs[i + 1]};
  }
  return code < 0x20 ? absl::StrFormat("\\u%04x", static_cast<uint32_t>(code)) : std::string();
}

void AppendJsonText(const Text& text, Text* out) {
  out->Append("\"");
  for (size_t p = 0; p < text.size();) {
    Character c = DecodeCharacter(text.bytes(), p);
    std::string escaped = JsonEscape(c.code);
    if (escaped.empty()) {
      out->AppendRange(text, p, p + c.size);
    } else {
      out->Append(escaped, text.IsUntrusted(p));
    }
    p += c.size;
  }
  out->Append("\"");
}

std::string JsonNumber(const Value& value) {
  if (auto integer = value.integer()) return absl::StrCat(*integer);
  double number = value.number();
  if (std::isnan(number)) return "NaN";
  if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
  return FloatRepr(number);
}

void AppendJsonBreak(int indent, int depth, Text* out) {
  if (indent >= 0) out->Append(absl::StrCat("\n", std::string(static_cast<size_t>(indent) * depth, ' ')));
}

absl::Status AppendJsonKey(Runtime& runtime, const Value& key, Text* out) {
  if (const Text* text = key.text()) {
    AppendJsonText(*text, out);
  } else if (key.is_none()) {
    out->Append("\"null\"");
  } else if (key.is_bool()) {
    out->Append(*key.integer() != 0 ? "\"true\"" : "\"false\"");
  } else if (key.is_number()) {
    out->Append(absl::StrCat("\"", JsonNumber(key), "\""));
  } else {
    return runtime.WrongType(key, "a key of a JSON object");
  }
  return absl::OkStatus();
}

absl::Status AppendJsonList(Runtime& runtime, const List& list, int indent, int depth, Text* out) {
  if (list.items.empty()) {
    out->Append("[]");
    return absl::OkStatus();
  }
  out->Append("[");
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out->Append(indent >= 0 ? "," : ", ");
    AppendJsonBreak(indent, depth + 1, out);
    RETURN_IF_ERROR(AppendJson(runtime, list.items[i], indent, depth + 1, out));
  }
  AppendJsonBreak(indent, depth, out);
  out->Append("]");
  return absl::OkStatus();
}

absl::Status AppendJsonDict(Runtime& runtime, const Dict& dict, int indent, int depth, Text* out) {
  if (dict.items.empty()) {
    out->Append("{}");
    return absl::OkStatus();
  }
  out->Append("{");
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i > 0) out->Append(indent >= 0 ? "," : ", ");
    AppendJsonBreak(indent, depth + 1, out);
    RETURN_IF_ERROR(AppendJsonKey(runtime, dict.items[i].first, out));
    out->Append(": ");
    RETURN_IF_ERROR(AppendJson(runtime, dict.items[i].second, indent, depth + 1, out));
  }
  AppendJsonBreak(indent, depth, out);
  out->Append("}");
  return absl::OkStatus();
}

}  // namespace

std::string FloatRepr(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  if (number == 0) return std::signbit(number) ? "-0.0" : "0.0";
  char digits[40];
  auto end = std::to_chars(digits, digits + sizeof digits, number, std::chars_format::scientific).ptr;
  std::string scientific(digits, end);
  // Python changes to an exponent below 1e-4 and from 1e16 on.
  int exponent = std::atoi(scientific.c_str() + scientific.find('e') + 1);
  if (exponent < -4 || exponent >= 16) return scientific;
  char fixed[64];
  end = std::to_chars(fixed, fixed + sizeof fixed, number, std::chars_format::fixed).ptr;
  std::string plain(fixed, end);
  return absl::StrContains(plain, '.') ? plain : plain + ".0";
}

void AppendTextRepr(const Text& text, Text* out) {
  bool has_single = absl::StrContains(text.bytes(), '\'');
  bool has_double = absl::StrContains(text.bytes(), '"');
  char32_t quote = has_single && !has_double ? '"' : '\'';
  std::string quotes(1, static_cast<char>(quote));
  out->Append(quotes);
  for (size_t p = 0; p < text.size();) {
    Character c = DecodeCharacter(text.bytes(), p);
    if (c.code == quote || c.code == '\\') {
      out->Append("\\", text.IsUntrusted(p));
      out->AppendRange(text, p, p + c.size);
    } else if (IsEscapedInRepr(c.code)) {
      out->Append(ReprEscape(c.code), text.IsUntrusted(p));
    } else {
      out->AppendRange(text, p, p + c.size);
    }
    p += c.size;
  }
  out->Append(quotes);
}

absl::Status AppendJson(Runtime& runtime, const Value& value, int indent, int depth, Text* out) {
  RETURN_IF_ERROR(runtime.Step());
  if (depth > kMaxDepth || out->too_long()) return runtime.Exhausted("JSON nested too deeply or too long");
  if (const Text* text = value.text()) {
    RETURN_IF_ERROR(runtime.WorkOn(*text, 8));
    AppendJsonText(*text, out);
  } else if (value.is_none()) {
    out->Append("null");
  } else if (value.is_bool()) {
    out->Append(*value.integer() != 0 ? "true" : "false");
  } else if (value.is_number()) {
    out->Append(JsonNumber(value));
  } else if (value.list() != nullptr && value.list()->kind <= ListKind::kTuple) {
    return AppendJsonList(runtime, *value.list(), indent, depth, out);
  } else if (value.dict() != nullptr) {
    return AppendJsonDict(runtime, *value.dict(), indent, depth, out);
  } else {
    return runtime.WrongType(value, "a value JSON knows");
  }
  return absl::OkStatus();
}

absl::Status Runtime::AppendListRepr(const List& list, int depth, Text* out) {
  bool tuple = list.kind == ListKind::kTuple;
  out->Append(tuple ? "(" : "[");
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out->Append(", ");
    RETURN_IF_ERROR(AppendRepr(list.items[i], depth + 1, out));
  }
  if (tuple && list.items.size() == 1) out->Append(",");
  out->Append(tuple ? ")" : "]");
  return absl::OkStatus();
}

absl::Status Runtime::AppendRepr(const Value& value, int depth, Text* out) {
  RETURN_IF_ERROR(Step());
  if (depth > kMaxDepth || out->too_long()) return Exhausted("a printed value nested too deeply or too long");
  if (const Text* text = value.text()) {
    RETURN_IF_ERROR(WorkOn(*text, 8));
    AppendTextRepr(*text, out);
  } else if (value.is_undefined()) {
    out->Append("Undefined");
  } else if (const List* list = value.list()) {
    if (list->kind > ListKind::kTuple) return WrongType(value, "a value that can be printed");
    return AppendListRepr(*list, depth, out);
  } else if (const Dict* dict = value.dict()) {
    out->Append("{");
    for (size_t i = 0; i < dict->items.size(); ++i) {
      if (i > 0) out->Append(", ");
      RETURN_IF_ERROR(AppendRepr(dict->items[i].first, depth + 1, out));
      out->Append(": ");
      RETURN_IF_ERROR(AppendRepr(dict->items[i].second, depth + 1, out));
    }
    out->Append("}");
  } else {
    return AppendText(value, out);
  }
  return absl::OkStatus();
}

absl::Status Runtime::AppendText(const Value& value, Text* out) {
  if (const Text* text = value.text()) {
    RETURN_IF_ERROR(ChargeText(value));
    out->Append(*text);
  } else if (value.is_undefined()) {
    // prints nothing
  } else if (value.is_none()) {
    out->Append("None");
  } else if (value.is_bool()) {
    out->Append(*value.integer() != 0 ? "True" : "False");
  } else if (value.is_integer()) {
    out->Append(absl::StrCat(*value.integer()));
  } else if (value.is_float()) {
    out->Append(FloatRepr(value.number()));
  } else if (value.list() != nullptr || value.dict() != nullptr) {
    return AppendRepr(value, 0, out);
  } else {
    return WrongType(value, "a value that can be printed");
  }
  return absl::OkStatus();
}

absl::StatusOr<Text> Runtime::ToText(const Value& value) {
  Text out;
  RETURN_IF_ERROR(AppendText(value, &out));
  return out;
}

}  // namespace millrace::jinja
