// Attributes, items and slices, after jinja2's getattr and getitem.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {
namespace {

Value IntegerValue(size_t n) {
  return Value(static_cast<int64_t>(n));
}

// Python's slice.indices: the positions are first, first + step, ... (`count` of them).
struct SlicePlan {
  int64_t first;
  int64_t step;
  int64_t count;
};

SlicePlan PlanSlice(int64_t length, const Value (&bounds)[3]) {
  int64_t step = bounds[2].is_none() ? 1 : *bounds[2].integer();
  int64_t lower = step < 0 ? -1 : 0;
  int64_t upper = step < 0 ? length - 1 : length;
  auto clip = [&](const Value& bound, int64_t left_out) {
    if (bound.is_none()) return left_out;
    int64_t position = *bound.integer();
    if (position < 0) position += length;
    return std::clamp(position, lower, std::max(lower, upper));
  };
  int64_t start = clip(bounds[0], step < 0 ? upper : lower);
  int64_t stop = clip(bounds[1], step < 0 ? lower : upper);
  // The distance is at most the length: steps beyond it all mean one element.
  step = std::clamp(step, -length - 1, length + 1);
  int64_t count = 0;
  if (step > 0 && start < stop) count = (stop - start - 1) / step + 1;
  if (step < 0 && stop < start) count = (start - stop - 1) / -step + 1;
  return {start, step, count};
}

// The byte position of the character `count` characters behind the one at `position`.
size_t Advance(const Text& text, size_t position, int64_t count) {
  for (; count > 0; --count) position += DecodeCharacter(text.bytes(), position).size;
  return position;
}

Text SliceText(const Text& text, const SlicePlan& plan) {
  if (plan.count == 0) return Text();
  if (plan.step == 1) {
    size_t begin = Advance(text, 0, plan.first);
    return text.Range(begin, Advance(text, begin, plan.count));
  }
  std::vector<size_t> offsets;  // of each character, and the end
  for (size_t p = 0; p < text.size(); p += DecodeCharacter(text.bytes(), p).size) offsets.push_back(p);
  offsets.push_back(text.size());
  Text out;
  for (int64_t i = 0, at = plan.first; i < plan.count; ++i, at += plan.step) {
    out.AppendRange(text, offsets[static_cast<size_t>(at)], offsets[static_cast<size_t>(at) + 1]);
  }
  return out;
}

bool IsSequence(const Value& value) {
  return value.text() != nullptr || (value.list() != nullptr && value.list()->kind <= ListKind::kTuple);
}

Value LoopAttribute(const LoopState& loop, absl::string_view name) {
  size_t length = loop.items.size();
  size_t index0 = loop.index0;
  if (name == "index") return IntegerValue(index0 + 1);
  if (name == "index0") return IntegerValue(index0);
  if (name == "revindex") return IntegerValue(length - index0);
  if (name == "revindex0") return IntegerValue(length - index0 - 1);
  if (name == "first") return Value(index0 == 0);
  if (name == "last") return Value(index0 + 1 == length);
  if (name == "length") return IntegerValue(length);
  if (name == "depth") return Value(int64_t{1});
  if (name == "depth0") return Value(int64_t{0});
  if (name == "previtem" && index0 > 0) return loop.items[index0 - 1];
  if (name == "nextitem" && index0 + 1 < length) return loop.items[index0 + 1];
  return Value();
}

}  // namespace

absl::StatusOr<Value> Runtime::OwnAttribute(const Value& object, absl::string_view name) {
  if (const Namespace* space = object.name_space()) {
    auto found = space->attributes.find(name);
    return found == space->attributes.end() ? Value() : found->second;
  }
  const Builtin* method = nullptr;
  if (object.text() != nullptr) method = FindTextMethod(name);
  if (object.dict() != nullptr) method = FindDictMethod(name);
  if (object.list() != nullptr && object.list()->kind == ListKind::kList) method = FindListMethod(name);
  if (object.loop() != nullptr) method = FindLoopMethod(name);
  if (method == nullptr) return object.loop() == nullptr ? Value() : LoopAttribute(*object.loop(), name);
  Callable callable;
  callable.name = method->name;
  callable.builtin = method;
  callable.self = object;
  return MakeCallable(std::move(callable));
}

absl::StatusOr<Value> Runtime::Subscript(const Value& object, const Value& key) {
  if (const Dict* dict = object.dict()) {
    for (const auto& [name, value] : dict->items) {
      ASSIGN_OR_RETURN(bool equal, Equal(name, key));
      if (equal) return value;
    }
    return Value();
  }
  if (!IsSequence(object) || !key.integer()) return Value();
  ASSIGN_OR_RETURN(int64_t length, Length(object));
  int64_t index = *key.integer();
  if (index < 0) index += length;
  if (index < 0 || index >= length) return Value();
  if (object.list() != nullptr) return object.list()->items[static_cast<size_t>(index)];
  RETURN_IF_ERROR(ChargeText(object));
  return MakeText(SliceText(*object.text(), {index, 1, 1}));
}

absl::StatusOr<Value> Runtime::Attribute(const Value& object, absl::string_view name) {
  if (object.is_undefined()) return WrongType(object, "an object");
  ASSIGN_OR_RETURN(Value own, OwnAttribute(object, name));
  if (!own.is_undefined()) return own;
  if (const Dict* dict = object.dict()) {
    RETURN_IF_ERROR(Step(static_cast<int64_t>(dict->items.size())));
    if (const Value* found = dict->Find(name)) return *found;
  }
  return Value(Undefined{name, object.TypeName()});
}

absl::StatusOr<Value> Runtime::Item(const Value& object, const Value& key) {
  if (object.is_undefined()) return WrongType(object, "an object");
  ASSIGN_OR_RETURN(Value found, Subscript(object, key));
  if (!found.is_undefined()) return found;
  const Text* name = key.text();
  if (name == nullptr) return Value(Undefined{"", object.TypeName()});
  RETURN_IF_ERROR(WorkOn(*name));
  ASSIGN_OR_RETURN(Value own, OwnAttribute(object, name->bytes()));
  return own.is_undefined() ? Value(Undefined{"", object.TypeName()}) : own;
}

absl::StatusOr<Value> Runtime::Slice(const Value& object, const Value (&bounds)[3]) {
  if (object.is_undefined()) return WrongType(object, "an object");
  bool integers = std::all_of(bounds, bounds + 3, [](const Value& b) { return b.is_none() || b.integer(); });
  if (!IsSequence(object) || !integers) return Value(Undefined{"", object.TypeName()});
  if (bounds[2].integer() == 0) return Error("the step of a slice is zero");
  ASSIGN_OR_RETURN(int64_t length, Length(object));
  SlicePlan plan = PlanSlice(length, bounds);
  if (object.text() != nullptr) {
    // One offset per character is kept while it is cut.
    RETURN_IF_ERROR(Work(static_cast<size_t>(length), 8));
    return MakeText(SliceText(*object.text(), plan));
  }
  RETURN_IF_ERROR(Step(plan.count));
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(plan.count));
  for (int64_t i = 0, at = plan.first; i < plan.count; ++i, at += plan.step) {
    items.push_back(object.list()->items[static_cast<size_t>(at)]);
  }
  return MakeList(std::move(items), object.list()->kind);
}

}  // namespace millrace::jinja
