// Global functions, and methods of dictionaries, lists and the loop variable.
#include <algorithm>
#include <ctime>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {
namespace {

absl::StatusOr<Value> RaiseException(const Invocation& call) {
  ASSIGN_OR_RETURN(Text message, call.runtime.ToText(call[0]));
  return call.runtime.Error(message.bytes());
}

absl::StatusOr<Value> StrftimeNow(const Invocation& call) {
  if (call[0].text() == nullptr) return call.runtime.WrongType(call[0], "a time format");
  const std::string& format = call[0].text()->bytes();
  constexpr size_t kMaxFormatBytes = 1000;
  if (format.size() > kMaxFormatBytes) return call.runtime.Error("strftime_now: the format is too long");
  if (format.empty()) return call.runtime.MakeText("");
  char buffer[16 * kMaxFormatBytes];
  size_t length = std::strftime(buffer, sizeof buffer, format.c_str(), &call.runtime.local_time());
  return call.runtime.MakeText(Text(absl::string_view(buffer, length), !call[0].text()->untrusted().empty()));
}

// range(stop), range(start, stop), range(start, stop, step).
absl::StatusOr<Value> Range(const Invocation& call) {
  int64_t bounds[3] = {0, 0, 1};
  size_t count = call.Given(2) ? 3 : call.Given(1) ? 2 : 1;
  for (size_t i = 0; i < count; ++i) {
    if (!call[i].integer()) return call.runtime.WrongType(call[i], "an integer");
    bounds[count == 1 ? 1 : i] = *call[i].integer();
  }
  auto [start, stop, step] = bounds;
  if (step == 0) return call.runtime.Error("range: the step is zero");
  // In unsigned arithmetic, where the distance of any two bounds fits.
  uint64_t distance = 0;
  if (step > 0 && start < stop) distance = static_cast<uint64_t>(stop) - static_cast<uint64_t>(start);
  if (step < 0 && stop < start) distance = static_cast<uint64_t>(start) - static_cast<uint64_t>(stop);
  uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : -static_cast<uint64_t>(step);
  uint64_t length = distance == 0 ? 0 : (distance - 1) / stride + 1;
  if (length > static_cast<uint64_t>(kMaxRange)) {
    return call.runtime.Error(absl::StrCat("range: ", length, " elements, limit ", kMaxRange));
  }
  RETURN_IF_ERROR(call.runtime.Step(static_cast<int64_t>(length)));
  std::vector<Value> items;
  for (uint64_t i = 0; i < length; ++i) {
    items.emplace_back(static_cast<int64_t>(static_cast<uint64_t>(start) + i * static_cast<uint64_t>(step)));
  }
  return call.runtime.MakeList(std::move(items));
}

// dict(mapping or pairs, **keywords), into `dict`.
absl::Status FillDict(const Invocation& call, Dict* dict) {
  if (call.raw.positional.size() > 1) return call.runtime.Error("expected one mapping or list of pairs");
  if (!call.raw.positional.empty()) {
    const Value& source = call.raw.positional[0];
    if (const Dict* other = source.dict()) {
      for (const auto& [key, value] : other->items) RETURN_IF_ERROR(call.runtime.SetItem(dict, key, value));
    } else {
      ASSIGN_OR_RETURN(std::vector<Value> pairs, call.runtime.Iterate(source));
      for (const Value& pair : pairs) {
        const List* list = pair.list();
        if (list == nullptr || list->items.size() != 2)
          return call.runtime.WrongType(pair, "a pair of key and value");
        RETURN_IF_ERROR(call.runtime.SetItem(dict, list->items[0], list->items[1]));
      }
    }
  }
  for (const auto& [name, value] : call.raw.keywords) {
    ASSIGN_OR_RETURN(Value key, call.runtime.MakeText(name));
    RETURN_IF_ERROR(call.runtime.SetItem(dict, std::move(key), value));
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> MakeDictionary(const Invocation& call) {
  ASSIGN_OR_RETURN(Dict * dict, call.runtime.MakeDict());
  RETURN_IF_ERROR(FillDict(call, dict));
  return Value(dict);
}

absl::StatusOr<Value> MakeNamespace(const Invocation& call) {
  ASSIGN_OR_RETURN(Dict * dict, call.runtime.MakeDict());
  RETURN_IF_ERROR(FillDict(call, dict));
  ASSIGN_OR_RETURN(Namespace * space, call.runtime.MakeNamespace());
  for (const auto& [key, value] : dict->items) {
    if (key.text() != nullptr) space->attributes[key.text()->bytes()] = value;
  }
  return Value(space);
}

absl::StatusOr<Value> DictGet(const Invocation& call) {
  for (const auto& [key, value] : call.self.dict()->items) {
    ASSIGN_OR_RETURN(bool equal, call.runtime.Equal(key, call[0]));
    if (equal) return value;
  }
  return call.Given(1) ? call[1] : Value(None{});
}

enum class DictPart { kKeys, kValues, kItems };

template <DictPart kPart>
absl::StatusOr<Value> DictView(const Invocation& call) {
  std::vector<Value> members;
  for (const auto& [key, value] : call.self.dict()->items) {
    RETURN_IF_ERROR(call.runtime.Step());
    if (kPart == DictPart::kItems) {
      ASSIGN_OR_RETURN(Value pair, call.runtime.MakeList({key, value}, ListKind::kTuple));
      members.push_back(std::move(pair));
    } else {
      members.push_back(kPart == DictPart::kKeys ? key : value);
    }
  }
  return call.runtime.MakeList(std::move(members), ListKind::kView);
}

absl::StatusOr<Value> DictCopy(const Invocation& call) {
  ASSIGN_OR_RETURN(Dict * copy, call.runtime.MakeDict());
  for (const auto& [key, value] : call.self.dict()->items)
    RETURN_IF_ERROR(call.runtime.SetItem(copy, key, value));
  return Value(copy);
}

absl::StatusOr<Value> ListAppend(const Invocation& call) {
  RETURN_IF_ERROR(call.runtime.Append(call.self.list(), call[0]));
  return Value(None{});
}

absl::StatusOr<Value> ListIndex(const Invocation& call) {
  const std::vector<Value>& items = call.self.list()->items;
  for (size_t i = 0; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(bool equal, call.runtime.Equal(items[i], call[0]));
    if (equal) return Value(static_cast<int64_t>(i));
  }
  return call.runtime.Error("index: the value is not in the list");
}

absl::StatusOr<Value> ListCount(const Invocation& call) {
  int64_t count = 0;
  for (const Value& item : call.self.list()->items) {
    ASSIGN_OR_RETURN(bool equal, call.runtime.Equal(item, call[0]));
    count += equal;
  }
  return Value(count);
}

absl::StatusOr<Value> LoopCycle(const Invocation& call) {
  const std::vector<Value>& values = call.raw.positional;
  if (values.empty()) return call.runtime.Error("loop.cycle: no values to cycle through");
  return values[call.self.loop()->index0 % values.size()];
}

absl::StatusOr<Value> LoopChanged(const Invocation& call) {
  ASSIGN_OR_RETURN(Value now, call.runtime.MakeList(call.raw.positional, ListKind::kTuple));
  std::optional<Value>& last = call.self.loop()->last_changed;
  bool same = false;
  if (last) {
    ASSIGN_OR_RETURN(same, call.runtime.Equal(*last, now));
  }
  last = now;
  return Value(!same);
}

constexpr Builtin kFunctions[] = {
    {"dict", "*", MakeDictionary},
    {"namespace", "*", MakeNamespace},
    {"raise_exception", "message", RaiseException},
    {"range", "start stop? step?", Range},
    {"strftime_now", "format", StrftimeNow},
};
constexpr Builtin kDictMethods[] = {
    {"copy", "", DictCopy},
    {"get", "key default?", DictGet},
    {"items", "", DictView<DictPart::kItems>},
    {"keys", "", DictView<DictPart::kKeys>},
    {"values", "", DictView<DictPart::kValues>},
};
constexpr Builtin kListMethods[] = {
    {"append", "object", ListAppend},
    {"count", "value", ListCount},
    {"index", "value", ListIndex},
};
constexpr Builtin kLoopMethods[] = {
    {"changed", "*", LoopChanged},
    {"cycle", "*", LoopCycle},
};

const Builtin* Find(absl::Span<const Builtin> rows, absl::string_view name) {
  auto row = std::find_if(rows.begin(), rows.end(), [&](const Builtin& b) { return b.name == name; });
  return row == rows.end() ? nullptr : &*row;
}

}  // namespace

const Builtin* FindFunction(absl::string_view name) {
  return Find(kFunctions, name);
}
const Builtin* FindDictMethod(absl::string_view name) {
  return Find(kDictMethods, name);
}
const Builtin* FindListMethod(absl::string_view name) {
  return Find(kListMethods, name);
}
const Builtin* FindLoopMethod(absl::string_view name) {
  return Find(kLoopMethods, name);
}

const Builtin* FindFilter(absl::string_view name) {
  for (absl::Span<const Builtin> rows : {TextFilters(), SequenceFilters(), ValueFilters()}) {
    if (const Builtin* found = Find(rows, name)) return found;
  }
  return nullptr;
}

}  // namespace millrace::jinja
