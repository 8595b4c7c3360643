// Filters over sequences and mappings.
#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/runtime.h"
#include "model/jinja/text_ops.h"

namespace millrace::jinja {
namespace {

// item.a.0.b of the `attribute` argument: names and numbers between the points.
absl::StatusOr<Value> FollowPath(Runtime& runtime, Value item, const Value& path) {
  if (path.integer()) return runtime.Item(item, path);
  if (path.text() == nullptr) return runtime.WrongType(path, "an attribute name");
  for (absl::string_view part : absl::StrSplit(path.text()->bytes(), '.')) {
    RETURN_IF_ERROR(runtime.Step());
    int64_t index = 0;
    bool numeric = !part.empty() && std::all_of(part.begin(), part.end(), absl::ascii_isdigit);
    if (numeric && absl::SimpleAtoi(part, &index)) {
      ASSIGN_OR_RETURN(item, runtime.Item(item, Value(index)));
    } else {
      ASSIGN_OR_RETURN(Value name, runtime.MakeText(part));
      ASSIGN_OR_RETURN(item, runtime.Item(item, name));
    }
  }
  return item;
}

// What sorts and comparisons look at: an attribute if asked for, in lower case unless case counts.
absl::StatusOr<Value> KeyOf(Runtime& runtime, const Value& item, const Value* attribute,
                            bool case_sensitive) {
  Value key = item;
  if (attribute != nullptr && !attribute->is_none()) {
    ASSIGN_OR_RETURN(key, FollowPath(runtime, item, *attribute));
  }
  if (case_sensitive || key.text() == nullptr) return key;
  RETURN_IF_ERROR(runtime.WorkOn(*key.text(), 16));
  return runtime.MakeText(Lower(*key.text()));
}

// What map, select and their kin run over: nothing at all for any false value, none included.
absl::StatusOr<std::vector<Value>> IterateIfTrue(const Invocation& call) {
  if (!call.runtime.Truth(call.self)) return std::vector<Value>();
  return call.runtime.Iterate(call.self);
}

bool Flag(const Invocation& call, size_t i) {
  return call.Given(i) && call.runtime.Truth(call[i]);
}

using Keyed = std::pair<Value, Value>;  // key, item

// Merges [begin, middle) and [middle, end), keeping the order of equals; the comparison may fail, so no
// std::sort.
absl::Status Merge(Runtime& runtime, bool reverse, const std::vector<Keyed>& from, const size_t (&bounds)[3],
                   std::vector<Keyed>* to) {
  size_t left = bounds[0];
  size_t right = bounds[1];
  while (left < bounds[1] || right < bounds[2]) {
    bool take_right = left == bounds[1];
    if (!take_right && right < bounds[2]) {
      ASSIGN_OR_RETURN(take_right, reverse ? runtime.Less(from[left].first, from[right].first)
                                           : runtime.Less(from[right].first, from[left].first));
    }
    to->push_back(from[take_right ? right++ : left++]);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Value>> SortKeyed(Runtime& runtime, std::vector<Keyed> items, bool reverse) {
  for (size_t width = 1; width < items.size(); width *= 2) {
    std::vector<Keyed> merged;
    merged.reserve(items.size());
    for (size_t begin = 0; begin < items.size(); begin += 2 * width) {
      size_t bounds[3] = {begin, std::min(begin + width, items.size()),
                          std::min(begin + 2 * width, items.size())};
      RETURN_IF_ERROR(Merge(runtime, reverse, items, bounds, &merged));
    }
    items = std::move(merged);
  }
  std::vector<Value> sorted;
  for (Keyed& item : items) sorted.push_back(std::move(item.second));
  return sorted;
}

absl::StatusOr<Value> Sort(const Invocation& call) {
  ASSIGN_OR_RETURN(std::vector<Value> items, call.runtime.Iterate(call.self));
  std::vector<Keyed> keyed;
  for (Value& item : items) {
    ASSIGN_OR_RETURN(Value key, KeyOf(call.runtime, item, call.bound[2], Flag(call, 1)));
    keyed.emplace_back(std::move(key), std::move(item));
  }
  ASSIGN_OR_RETURN(items, SortKeyed(call.runtime, std::move(keyed), Flag(call, 0)));
  return call.runtime.MakeList(std::move(items));
}

absl::StatusOr<Value> PairOf(Runtime& runtime, const Value& first, const Value& second) {
  return runtime.MakeList({first, second}, ListKind::kTuple);
}

absl::StatusOr<Value> DictSort(const Invocation& call) {
  const Dict* dict = call.self.dict();
  if (dict == nullptr) return call.runtime.WrongType(call.self, "a mapping");
  bool by_value = call.Given(1) && call[1].text() != nullptr && call[1].text()->bytes() == "value";
  std::vector<Keyed> keyed;
  for (const auto& [name, value] : dict->items) {
    ASSIGN_OR_RETURN(Value key, KeyOf(call.runtime, by_value ? value : name, nullptr, Flag(call, 0)));
    ASSIGN_OR_RETURN(Value pair, PairOf(call.runtime, name, value));
    keyed.emplace_back(std::move(key), std::move(pair));
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, SortKeyed(call.runtime, std::move(keyed), Flag(call, 2)));
  return call.runtime.MakeList(std::move(items));
}

absl::StatusOr<Value> Unique(const Invocation& call) {
  ASSIGN_OR_RETURN(std::vector<Value> items, call.runtime.Iterate(call.self));
  std::vector<Value> keys;
  std::vector<Value> kept;
  for (Value& item : items) {
    ASSIGN_OR_RETURN(Value key, KeyOf(call.runtime, item, call.bound[1], Flag(call, 0)));
    bool seen = false;
    for (size_t i = 0; i < keys.size() && !seen; ++i) {
      ASSIGN_OR_RETURN(seen, call.runtime.Equal(keys[i], key));
    }
    if (seen) continue;
    keys.push_back(std::move(key));
    kept.push_back(std::move(item));
  }
  return call.runtime.MakeList(std::move(kept), ListKind::kGenerator);
}

template <bool kMaximum>
absl::StatusOr<Value> Extreme(const Invocation& call) {
  ASSIGN_OR_RETURN(std::vector<Value> items, call.runtime.Iterate(call.self));
  if (items.empty()) return Value();
  size_t best = 0;
  ASSIGN_OR_RETURN(Value best_key, KeyOf(call.runtime, items[0], call.bound[1], Flag(call, 0)));
  for (size_t i = 1; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(Value key, KeyOf(call.runtime, items[i], call.bound[1], Flag(call, 0)));
    ASSIGN_OR_RETURN(bool better,
                     kMaximum ? call.runtime.Less(best_key, key) : call.runtime.Less(key, best_key));
    if (!better) continue;
    best = i;
    best_key = std::move(key);
  }
  return items[best];
}

absl::StatusOr<Value> Sum(const Invocation& call) {
  ASSIGN_OR_RETURN(std::vector<Value> items, call.runtime.Iterate(call.self));
  Value total = call.Given(1) ? call[1] : Value(int64_t{0});
  for (const Value& item : items) {
    Value term = item;
    if (call.Given(0) && !call[0].is_none()) {
      ASSIGN_OR_RETURN(term, FollowPath(call.runtime, item, call[0]));
    }
    if (term.text() != nullptr) return call.runtime.WrongType(term, "a number to sum");
    ASSIGN_OR_RETURN(total, call.runtime.Apply(Operator::kAdd, total, term));
  }
  return total;
}

absl::StatusOr<Value> Join(const Invocation& call) {
  ASSIGN_OR_RETURN(std::vector<Value> items, call.runtime.Iterate(call.self));
  Text separator;
  if (call.Given(0)) {
    ASSIGN_OR_RETURN(separator, call.runtime.ToText(call[0]));
  }
  Text out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.Append(separator);
    Value item = items[i];
    if (call.Given(1) && !call[1].is_none()) {
      ASSIGN_OR_RETURN(item, FollowPath(call.runtime, item, call[1]));
    }
    RETURN_IF_ERROR(call.runtime.AppendText(item, &out));
  }
  return call.runtime.MakeText(std::move(out));
}

absl::StatusOr<Value> First(const Invocation& call) {
  if (List* list = call.self.list(); list != nullptr) {
    if (list->items.empty()) return Value();
    Value first = list->items.front();
    if (list->kind == ListKind::kGenerator) list->items.erase(list->items.begin());
    return first;
  }
  if (call.self.text() != nullptr) return call.runtime.Item(call.self, Value(int64_t{0}));
  ASSIGN_OR_RETURN(std::vector<Value> items, call.runtime.Iterate(call.self));
  return items.empty() ? Value() : items.front();
}

absl::StatusOr<Value> Last(const Invocation& call) {
  if (call.self.is_undefined()) return Value();
  if (const List* list = call.self.list(); list != nullptr && list->kind != ListKind::kGenerator) {
    return list->items.empty() ? Value() : list->items.back();
  }
  if (call.self.text() != nullptr) return call.runtime.Item(call.self, Value(int64_t{-1}));
  const Dict* dict = call.self.dict();
  if (dict != nullptr) return dict->items.empty() ? Value() : dict->items.back().first;
  return call.runtime.WrongType(call.self, "a sequence with an end");
}

absl::StatusOr<Value> Reverse(const Invocation& call) {
  if (call.self.text() != nullptr) {
    return call.runtime.Slice(call.self, {Value(None{}), Value(None{}), Value(int64_t{-1})});
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, call.runtime.Iterate(call.self));
  std::reverse(items.begin(), items.end());
  return call.runtime.MakeList(std::move(items), ListKind::kGenerator);
}

absl::StatusOr<Value> ListOf(const Invocation& call) {
  ASSIGN_OR_RETURN(std::vector<Value> items, call.runtime.Iterate(call.self));
  return call.runtime.MakeList(std::move(items));
}

absl::StatusOr<Value> Items(const Invocation& call) {
  std::vector<Value> pairs;
  if (!call.self.is_undefined()) {
    if (call.self.dict() == nullptr) return call.runtime.WrongType(call.self, "a mapping");
    for (const auto& [key, value] : call.self.dict()->items) {
      ASSIGN_OR_RETURN(Value pair, PairOf(call.runtime, key, value));
      pairs.push_back(std::move(pair));
    }
  }
  return call.runtime.MakeList(std::move(pairs), ListKind::kGenerator);
}

// The name of a filter or test given as an argument.
absl::StatusOr<const Builtin*> NamedBuiltin(Runtime& runtime, const Value& name, bool test) {
  if (name.text() == nullptr) return runtime.WrongType(name, "the name of a filter or test");
  const Builtin* builtin = test ? FindTest(name.text()->bytes()) : FindFilter(name.text()->bytes());
  if (builtin != nullptr) return builtin;
  return runtime.Error(absl::StrCat("no ", test ? "test" : "filter", " named '", name.text()->bytes(), "'"));
}

// The arguments behind the first `count` ones.
Arguments Rest(const Arguments& all, size_t count) {
  Arguments rest;
  for (size_t i = count; i < all.positional.size(); ++i) rest.positional.push_back(all.positional[i]);
  rest.keywords = all.keywords;
  return rest;
}

absl::StatusOr<Value> MapAttribute(const Invocation& call) {
  const Value* path = nullptr;
  const Value* fallback = nullptr;
  for (const auto& [name, value] : call.raw.keywords) {
    if (name == "attribute") {
      path = &value;
    } else if (name == "default") {
      fallback = &value;
    } else {
      return call.runtime.Error(absl::StrCat("filter map: unknown argument '", name, "'"));
    }
  }
  if (path == nullptr) return call.runtime.Error("filter map: needs a filter name or attribute=");
  ASSIGN_OR_RETURN(std::vector<Value> items, IterateIfTrue(call));
  for (Value& item : items) {
    ASSIGN_OR_RETURN(item, FollowPath(call.runtime, item, *path));
    if (item.is_undefined() && fallback != nullptr) item = *fallback;
  }
  return call.runtime.MakeList(std::move(items), ListKind::kGenerator);
}

absl::StatusOr<Value> Map(const Invocation& call) {
  if (call.raw.positional.empty()) return MapAttribute(call);
  ASSIGN_OR_RETURN(const Builtin* filter, NamedBuiltin(call.runtime, call.raw.positional[0], false));
  Arguments arguments = Rest(call.raw, 1);
  ASSIGN_OR_RETURN(std::vector<Value> items, IterateIfTrue(call));
  for (Value& item : items) {
    ASSIGN_OR_RETURN(item, CallBuiltin(call.runtime, *filter, item, arguments));
  }
  return call.runtime.MakeList(std::move(items), ListKind::kGenerator);
}

// select, reject, selectattr, rejectattr: keep the items whose value (attribute) passes the test, or is true.
template <bool kKeep, bool kByAttribute>
absl::StatusOr<Value> Select(const Invocation& call) {
  const std::vector<Value>& given = call.raw.positional;
  constexpr size_t kTestIndex = kByAttribute ? 1 : 0;
  if (given.size() < kTestIndex)
    return call.runtime.Error("selectattr and rejectattr need an attribute name");
  const Builtin* test = nullptr;
  if (given.size() > kTestIndex) {
    ASSIGN_OR_RETURN(test, NamedBuiltin(call.runtime, given[kTestIndex], true));
  }
  Arguments arguments = Rest(call.raw, kTestIndex + 1);
  ASSIGN_OR_RETURN(std::vector<Value> items, IterateIfTrue(call));
  std::vector<Value> kept;
  for (Value& item : items) {
    Value subject = item;
    if (kByAttribute) {
      ASSIGN_OR_RETURN(subject, FollowPath(call.runtime, item, given[0]));
    }
    if (test != nullptr) {
      ASSIGN_OR_RETURN(subject, CallBuiltin(call.runtime, *test, subject, arguments));
    }
    if (call.runtime.Truth(subject) == kKeep) kept.push_back(std::move(item));
  }
  return call.runtime.MakeList(std::move(kept), ListKind::kGenerator);
}

constexpr Builtin kFilters[] = {
    {"dictsort", "case_sensitive? by? reverse?", DictSort},
    {"first", "", First},
    {"items", "", Items},
    {"join", "d? attribute?", Join},
    {"last", "", Last},
    {"list", "", ListOf},
    {"map", "*", Map},
    {"max", "case_sensitive? attribute?", Extreme<true>},
    {"min", "case_sensitive? attribute?", Extreme<false>},
    {"reject", "*", Select<false, false>},
    {"rejectattr", "*", Select<false, true>},
    {"reverse", "", Reverse},
    {"select", "*", Select<true, false>},
    {"selectattr", "*", Select<true, true>},
    {"sort", "reverse? case_sensitive? attribute?", Sort},
    {"sum", "attribute? start?", Sum},
    {"unique", "case_sensitive? attribute?", Unique},
};

}  // namespace

absl::Span<const Builtin> SequenceFilters() {
  return kFilters;
}

}  // namespace millrace::jinja
