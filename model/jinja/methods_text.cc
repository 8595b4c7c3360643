// Methods of strings.
#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/format.h"
#include "model/jinja/runtime.h"
#include "model/jinja/text_ops.h"

namespace millrace::jinja {
namespace {

const Text& Self(const Invocation& call) {
  return *call.self.text();
}

absl::StatusOr<const Text*> TextArgument(const Invocation& call, size_t i) {
  if (call[i].text() == nullptr) return call.runtime.WrongType(call[i], "a string");
  return call[i].text();
}

absl::StatusOr<int64_t> IntegerArgument(const Invocation& call, size_t i, int64_t fallback) {
  if (!call.Given(i)) return fallback;
  if (!call[i].integer()) return call.runtime.WrongType(call[i], "an integer");
  return *call[i].integer();
}

absl::StatusOr<Value> TextList(Runtime& runtime, std::vector<Text> parts, ListKind kind = ListKind::kList) {
  RETURN_IF_ERROR(runtime.Step(static_cast<int64_t>(parts.size())));
  std::vector<Value> values;
  values.reserve(parts.size());
  for (Text& part : parts) {
    ASSIGN_OR_RETURN(Value value, runtime.MakeText(std::move(part)));
    values.push_back(std::move(value));
  }
  return runtime.MakeList(std::move(values), kind);
}

template <Side kSide>
absl::StatusOr<Value> StripMethod(const Invocation& call) {
  const Text* characters = nullptr;
  if (call.Given(0) && !call[0].is_none()) {
    ASSIGN_OR_RETURN(characters, TextArgument(call, 0));
    RETURN_IF_ERROR(call.runtime.WorkOn(*characters, 64));  // it is sorted
  }
  RETURN_IF_ERROR(call.runtime.WorkOn(Self(call), 4));
  return call.runtime.MakeText(Strip(Self(call), characters, kSide));
}

template <bool kFromRight>
absl::StatusOr<Value> Split(const Invocation& call) {
  ASSIGN_OR_RETURN(int64_t limit, IntegerArgument(call, 1, -1));
  RETURN_IF_ERROR(call.runtime.WorkOn(Self(call), 2));
  if (!call.Given(0) || call[0].is_none())
    return TextList(call.runtime, SplitBlanks(Self(call), limit, kFromRight));
  ASSIGN_OR_RETURN(const Text* separator, TextArgument(call, 0));
  if (separator->empty()) return call.runtime.Error("split: empty separator");
  return TextList(call.runtime, SplitBy(Self(call), separator->bytes(), limit, kFromRight));
}

template <bool kFromRight>
absl::StatusOr<Value> Partition(const Invocation& call) {
  ASSIGN_OR_RETURN(const Text* separator, TextArgument(call, 0));
  if (separator->empty()) return call.runtime.Error("partition: empty separator");
  RETURN_IF_ERROR(call.runtime.WorkOn(Self(call), 2));
  std::vector<Text> parts = SplitBy(Self(call), separator->bytes(), 1, kFromRight);
  if (parts.size() == 2) {
    parts.insert(parts.begin() + 1, Self(call).Range(parts[0].size(), parts[0].size() + separator->size()));
  } else {
    parts.resize(3);
    if (kFromRight) std::swap(parts[0], parts[2]);
  }
  return TextList(call.runtime, std::move(parts), ListKind::kTuple);
}

absl::StatusOr<Value> SplitLinesMethod(const Invocation& call) {
  RETURN_IF_ERROR(call.runtime.WorkOn(Self(call), 2));
  bool keep_ends = call.Given(0) && call.runtime.Truth(call[0]);
  return TextList(call.runtime, SplitLines(Self(call), keep_ends));
}

bool Matches(absl::string_view text, absl::string_view part, bool at_end) {
  return at_end ? absl::EndsWith(text, part) : absl::StartsWith(text, part);
}

template <bool kAtEnd>
absl::StatusOr<Value> StartsOrEnds(const Invocation& call) {
  if (const List* options = call[0].list(); options != nullptr && options->kind == ListKind::kTuple) {
    for (const Value& option : options->items) {
      RETURN_IF_ERROR(call.runtime.Step());
      if (option.text() == nullptr) return call.runtime.WrongType(option, "a string");
      RETURN_IF_ERROR(call.runtime.WorkOn(*option.text()));
      if (Matches(Self(call).bytes(), option.text()->bytes(), kAtEnd)) return Value(true);
    }
    return Value(false);
  }
  ASSIGN_OR_RETURN(const Text* part, TextArgument(call, 0));
  RETURN_IF_ERROR(call.runtime.WorkOn(*part));
  return Value(Matches(Self(call).bytes(), part->bytes(), kAtEnd));
}

template <bool kAtEnd>
absl::StatusOr<Value> RemoveAffix(const Invocation& call) {
  ASSIGN_OR_RETURN(const Text* part, TextArgument(call, 0));
  const Text& self = Self(call);
  RETURN_IF_ERROR(call.runtime.WorkOn(*part));
  if (!Matches(self.bytes(), part->bytes(), kAtEnd)) return call.self;
  return call.runtime.MakeText(kAtEnd ? self.Range(0, self.size() - part->size())
                                      : self.Range(part->size(), self.size()));
}

template <Text (*kMap)(const Text&)>
absl::StatusOr<Value> Mapped(const Invocation& call) {
  RETURN_IF_ERROR(call.runtime.WorkOn(Self(call), 16));
  return call.runtime.MakeText(kMap(Self(call)));
}

absl::StatusOr<Value> ReplaceMethod(const Invocation& call) {
  ASSIGN_OR_RETURN(const Text* from, TextArgument(call, 0));
  ASSIGN_OR_RETURN(const Text* to, TextArgument(call, 1));
  ASSIGN_OR_RETURN(int64_t count, IntegerArgument(call, 2, -1));
  RETURN_IF_ERROR(call.runtime.WorkOn(Self(call), 16));
  return call.runtime.MakeText(Replace(Self(call), *from, *to, count));
}

absl::StatusOr<Value> JoinMethod(const Invocation& call) {
  ASSIGN_OR_RETURN(std::vector<Value> items, call.runtime.Iterate(call[0]));
  Text out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].text() == nullptr) return call.runtime.WrongType(items[i], "a string to join");
    if (i > 0) out.Append(Self(call));
    RETURN_IF_ERROR(call.runtime.AppendText(items[i], &out));
  }
  return call.runtime.MakeText(std::move(out));
}

absl::StatusOr<Value> FormatMethod(const Invocation& call) {
  ASSIGN_OR_RETURN(Text text, FormatBraces(call.runtime, Self(call), call.raw));
  return call.runtime.MakeText(std::move(text));
}

template <bool kLast>
absl::StatusOr<Value> Find(const Invocation& call) {
  ASSIGN_OR_RETURN(const Text* part, TextArgument(call, 0));
  absl::string_view bytes = Self(call).bytes();
  RETURN_IF_ERROR(call.runtime.Work(bytes.size() + part->size(), 4));
  size_t found = kLast ? FindLastBytes(bytes, part->bytes()) : FindBytes(bytes, part->bytes(), 0);
  if (found == absl::string_view::npos) return Value(int64_t{-1});
  int64_t position = 0;
  for (size_t p = 0; p < found; p += DecodeCharacter(bytes, p).size) ++position;
  return Value(position);
}

absl::StatusOr<Value> Count(const Invocation& call) {
  ASSIGN_OR_RETURN(const Text* part, TextArgument(call, 0));
  absl::string_view bytes = Self(call).bytes();
  RETURN_IF_ERROR(call.runtime.Work(bytes.size(), 16));
  if (part->empty()) {
    ASSIGN_OR_RETURN(int64_t length, call.runtime.Length(call.self));
    return Value(length + 1);
  }
  int64_t count = 0;
  for (size_t p = FindBytes(bytes, part->bytes(), 0); p != absl::string_view::npos; ++count) {
    p = FindBytes(bytes, part->bytes(), p + part->size());
  }
  return Value(count);
}

bool IsAsciiDigit(char32_t c) {
  return c >= '0' && c <= '9';
}
bool IsLetter(char32_t c) {
  return (c < 0x80 && std::isalpha(static_cast<int>(c)) != 0) || (c >= 0x80 && IsCased(c));
}
bool IsLetterOrDigit(char32_t c) {
  return IsLetter(c) || IsAsciiDigit(c);
}

template <bool (*kHas)(char32_t)>
absl::StatusOr<Value> All(const Invocation& call) {
  const Text& self = Self(call);
  RETURN_IF_ERROR(call.runtime.WorkOn(self, 4));
  for (size_t p = 0; p < self.size();) {
    Character c = DecodeCharacter(self.bytes(), p);
    if (!kHas(c.code)) return Value(false);
    p += c.size;
  }
  return Value(!self.empty());
}

constexpr Builtin kMethods[] = {
    {"capitalize", "", Mapped<Capitalize>},
    {"count", "sub", Count},
    {"endswith", "suffix", StartsOrEnds<true>},
    {"find", "sub", Find<false>},
    {"format", "*", FormatMethod},
    {"isalnum", "", All<IsLetterOrDigit>},
    {"isalpha", "", All<IsLetter>},
    {"isdigit", "", All<IsAsciiDigit>},
    {"isspace", "", All<IsSpace>},
    {"join", "iterable", JoinMethod},
    {"lower", "", Mapped<Lower>},
    {"lstrip", "chars?", StripMethod<Side::kLeft>},
    {"partition", "sep", Partition<false>},
    {"removeprefix", "prefix", RemoveAffix<false>},
    {"removesuffix", "suffix", RemoveAffix<true>},
    {"replace", "old new count?", ReplaceMethod},
    {"rfind", "sub", Find<true>},
    {"rpartition", "sep", Partition<true>},
    {"rsplit", "sep? maxsplit?", Split<true>},
    {"rstrip", "chars?", StripMethod<Side::kRight>},
    {"split", "sep? maxsplit?", Split<false>},
    {"splitlines", "keepends?", SplitLinesMethod},
    {"startswith", "prefix", StartsOrEnds<false>},
    {"strip", "chars?", StripMethod<Side::kBoth>},
    {"title", "", Mapped<Title>},
    {"upper", "", Mapped<Upper>},
};

}  // namespace

const Builtin* FindTextMethod(absl::string_view name) {
  auto row = std::find_if(std::begin(kMethods), std::end(kMethods),
                          [&](const Builtin& b) { return b.name == name; });
  return row == std::end(kMethods) ? nullptr : row;
}

}  // namespace millrace::jinja
