// Filters over strings.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/format.h"
#include "model/jinja/runtime.h"
#include "model/jinja/text_ops.h"

namespace millrace::jinja {
namespace {

using MapText = Text (*)(const Text&);

template <MapText kMap>
absl::StatusOr<Value> Mapped(const Invocation& call) {
  ASSIGN_OR_RETURN(Text text, call.runtime.ToText(call.self));
  RETURN_IF_ERROR(call.runtime.WorkOn(text, 16));
  return call.runtime.MakeText(kMap(text));
}

absl::StatusOr<Value> Trim(const Invocation& call) {
  ASSIGN_OR_RETURN(Text text, call.runtime.ToText(call.self));
  if (!call.Given(0) || call[0].is_none()) return call.runtime.MakeText(Strip(text, nullptr, Side::kBoth));
  if (call[0].text() == nullptr) return call.runtime.WrongType(call[0], "the characters to trim");
  RETURN_IF_ERROR(call.runtime.WorkOn(*call[0].text(), 64));  // it is sorted
  return call.runtime.MakeText(Strip(text, call[0].text(), Side::kBoth));
}

absl::StatusOr<Value> ReplaceFilter(const Invocation& call) {
  ASSIGN_OR_RETURN(Text text, call.runtime.ToText(call.self));
  ASSIGN_OR_RETURN(Text from, call.runtime.ToText(call[0]));
  ASSIGN_OR_RETURN(Text to, call.runtime.ToText(call[1]));
  int64_t count = -1;
  if (call.Given(2) && !call[2].is_none()) {
    if (!call[2].integer()) return call.runtime.WrongType(call[2], "a number of replacements");
    count = *call[2].integer();
  }
  RETURN_IF_ERROR(call.runtime.WorkOn(text, 16));
  return call.runtime.MakeText(Replace(text, from, to, count));
}

absl::StatusOr<Value> Indent(const Invocation& call) {
  if (call.self.text() == nullptr) return call.runtime.WrongType(call.self, "a string to indent");
  Text text = *call.self.text();
  Text indent("    ");
  if (call.Given(0) && call[0].text() != nullptr) {
    indent = *call[0].text();
  } else if (call.Given(0)) {
    if (!call[0].integer()) return call.runtime.WrongType(call[0], "a width");
    int64_t width = std::clamp<int64_t>(*call[0].integer(), 0, kMaxTextBytes);
    indent = Text(std::string(static_cast<size_t>(width), ' '));
  }
  bool first = call.Given(1) && call.runtime.Truth(call[1]);
  bool blank = call.Given(2) && call.runtime.Truth(call[2]);
  text.Append("\n");  // jinja2's own quirk: an empty text has one line
  std::vector<Text> lines = SplitLines(text, false);
  RETURN_IF_ERROR(call.runtime.Step(static_cast<int64_t>(lines.size())));
  Text out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n");
    if (i == 0 ? first : blank || !lines[i].empty()) out.Append(indent);
    out.Append(lines[i]);
  }
  return call.runtime.MakeText(std::move(out));
}

absl::StatusOr<Value> FormatFilter(const Invocation& call) {
  ASSIGN_OR_RETURN(Text text, call.runtime.ToText(call.self));
  if (!call.raw.keywords.empty())
    return call.runtime.Error("filter format: keyword arguments are not supported");
  ASSIGN_OR_RETURN(Value tuple, call.runtime.MakeList(call.raw.positional, ListKind::kTuple));
  ASSIGN_OR_RETURN(Text formatted, FormatPercent(call.runtime, text, tuple));
  return call.runtime.MakeText(std::move(formatted));
}

absl::StatusOr<Value> String(const Invocation& call) {
  if (call.self.is_text()) return call.self;
  ASSIGN_OR_RETURN(Text text, call.runtime.ToText(call.self));
  return call.runtime.MakeText(std::move(text));
}

absl::StatusOr<Value> ToJson(const Invocation& call) {
  int indent = -1;
  if (call.Given(0) && !call[0].is_none()) {
    if (!call[0].integer()) return call.runtime.WrongType(call[0], "an indent");
    indent = static_cast<int>(std::clamp<int64_t>(*call[0].integer(), 0, 100));
  }
  Text out;
  RETURN_IF_ERROR(AppendJson(call.runtime, call.self, indent, 0, &out));
  return call.runtime.MakeText(std::move(out));
}

absl::StatusOr<Value> WordCount(const Invocation& call) {
  ASSIGN_OR_RETURN(Text text, call.runtime.ToText(call.self));
  int64_t words = 0;
  bool inside = false;
  for (size_t p = 0; p < text.size();) {
    Character c = DecodeCharacter(text.bytes(), p);
    bool word = !IsSpace(c.code);
    words += word && !inside;
    inside = word;
    p += c.size;
  }
  return Value(words);
}

constexpr Builtin kFilters[] = {
    {"capitalize", "", Mapped<Capitalize>},
    {"format", "*", FormatFilter},
    {"indent", "width? first? blank?", Indent},
    {"lower", "", Mapped<Lower>},
    {"replace", "old new count?", ReplaceFilter},
    {"safe", "", String},
    {"string", "", String},
    {"title", "", Mapped<TitleWords>},
    {"tojson", "indent?", ToJson},
    {"trim", "chars?", Trim},
    {"upper", "", Mapped<Upper>},
    {"wordcount", "", WordCount},
};

}  // namespace

absl::Span<const Builtin> TextFilters() {
  return kFilters;
}

}  // namespace millrace::jinja
