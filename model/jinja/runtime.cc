#include "model/jinja/runtime.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/lexer.h"

namespace millrace::jinja {
namespace {

constexpr int64_t kTextOverhead = 96;  // control block and header of a string value
constexpr int64_t kObjectOverhead = 64;

}  // namespace

absl::Status Runtime::Error(absl::string_view message) const {
  return TemplateError(line_, message);
}

absl::Status Runtime::Exhausted(absl::string_view what) const {
  return absl::ResourceExhaustedError(
      absl::StrCat("chat template line ", line_, ": ", what, "; send fewer or shorter messages"));
}

absl::Status Runtime::WrongType(const Value& value, absl::string_view wanted) const {
  const Undefined* undefined = value.undefined();
  if (undefined == nullptr) return Error(absl::StrCat("expected ", wanted, ", got ", value.TypeName()));
  if (undefined->name.empty()) return Error(absl::StrCat("an undefined value was used as ", wanted));
  if (undefined->owner.empty()) return Error(absl::StrCat("'", undefined->name, "' is undefined"));
  return Error(absl::StrCat("'", undefined->owner, " object' has no attribute '", undefined->name, "'"));
}

absl::Status Runtime::Step(int64_t count) {
  steps_ += count;
  if (steps_ <= kMaxSteps) return absl::OkStatus();
  return Exhausted(absl::StrCat("over ", kMaxSteps, " steps"));
}

absl::Status Runtime::Work(size_t bytes, int64_t cost) {
  work_bytes_ += static_cast<int64_t>(bytes) * cost;
  if (work_bytes_ <= kMaxWorkBytes) return absl::OkStatus();
  return Exhausted(absl::StrCat("over ", kMaxWorkBytes, " bytes of text worked on"));
}

absl::Status Runtime::Hold(int64_t bytes) {
  live_bytes_ += bytes;
  if (live_bytes_ <= kMaxLiveBytes) return absl::OkStatus();
  return Exhausted(absl::StrCat("over ", kMaxLiveBytes, " bytes of memory"));
}

absl::StatusOr<Value> Runtime::MakeText(Text text) {
  if (text.too_long()) return Exhausted(absl::StrCat("a text over ", kMaxTextBytes, " bytes"));
  RETURN_IF_ERROR(WorkOn(text));
  int64_t held = static_cast<int64_t>(text.memory()) + kTextOverhead;
  RETURN_IF_ERROR(Hold(held));
  return Value(TextPointer(new Text(std::move(text)), [this, held](const Text* dead) {
    live_bytes_ -= held;
    delete dead;
  }));
}

absl::StatusOr<Value> Runtime::MakeList(std::vector<Value> items, ListKind kind) {
  RETURN_IF_ERROR(Hold(kObjectOverhead + static_cast<int64_t>(items.size() * sizeof(Value))));
  lists_.push_back({kind, std::move(items)});
  return Value(&lists_.back());
}

absl::StatusOr<Dict*> Runtime::MakeDict() {
  RETURN_IF_ERROR(Hold(kObjectOverhead));
  return &dicts_.emplace_back();
}

absl::StatusOr<Namespace*> Runtime::MakeNamespace() {
  RETURN_IF_ERROR(Hold(kObjectOverhead));
  return &namespaces_.emplace_back();
}

absl::StatusOr<LoopState*> Runtime::MakeLoop(std::vector<Value> items) {
  RETURN_IF_ERROR(Hold(kObjectOverhead + static_cast<int64_t>(items.size() * sizeof(Value))));
  LoopState& loop = loops_.emplace_back();
  loop.items = std::move(items);
  return &loop;
}

absl::StatusOr<Scope*> Runtime::MakeScope(Scope* parent) {
  RETURN_IF_ERROR(Hold(2 * kObjectOverhead));
  Scope& scope = scopes_.emplace_back();
  scope.parent = parent;
  return &scope;
}

absl::StatusOr<Value> Runtime::MakeCallable(Callable callable) {
  RETURN_IF_ERROR(Hold(static_cast<int64_t>(sizeof(Callable))));
  return Value(&callables_.emplace_back(std::move(callable)));
}

absl::Status Runtime::Append(List* list, Value item) {
  RETURN_IF_ERROR(Hold(static_cast<int64_t>(sizeof(Value))));
  list->items.push_back(std::move(item));
  return absl::OkStatus();
}

absl::Status Runtime::SetItem(Dict* dict, Value key, Value value) {
  if (key.list() != nullptr && key.list()->kind == ListKind::kList)
    return Error("a list cannot be a dictionary key");
  if (key.dict() != nullptr) return Error("a dictionary cannot be a dictionary key");
  for (auto& item : dict->items) {
    RETURN_IF_ERROR(Step());
    ASSIGN_OR_RETURN(bool same, Equal(item.first, key));
    if (!same) continue;
    item.second = std::move(value);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Hold(2 * static_cast<int64_t>(sizeof(Value))));
  dict->items.emplace_back(std::move(key), std::move(value));
  return absl::OkStatus();
}

bool Runtime::Truth(const Value& value) const {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_number()) return value.number() != 0;
  if (const Text* text = value.text()) return !text->empty();
  if (const List* list = value.list()) return list->kind == ListKind::kGenerator || !list->items.empty();
  if (const Dict* dict = value.dict()) return !dict->items.empty();
  return true;
}

absl::StatusOr<int64_t> Runtime::Length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (const List* list = value.list(); list != nullptr && list->kind != ListKind::kGenerator) {
    return static_cast<int64_t>(list->items.size());
  }
  if (const Dict* dict = value.dict()) return static_cast<int64_t>(dict->items.size());
  const Text* text = value.text();
  if (text == nullptr) return WrongType(value, "something with a length");
  RETURN_IF_ERROR(WorkOn(*text, 4));
  int64_t count = 0;
  for (size_t p = 0; p < text->size(); p += DecodeCharacter(text->bytes(), p).size) ++count;
  return count;
}

absl::StatusOr<std::vector<Value>> Runtime::Iterate(const Value& value) {
  if (value.is_undefined()) return std::vector<Value>();
  std::vector<Value> items;
  if (List* list = value.list()) {
    if (list->kind == ListKind::kGenerator) {
      items.swap(list->items);
    } else {
      items = list->items;
    }
  } else if (const Dict* dict = value.dict()) {
    for (const auto& item : dict->items) items.push_back(item.first);
  } else if (const Text* text = value.text()) {
    for (size_t p = 0; p < text->size();) {
      size_t end = p + DecodeCharacter(text->bytes(), p).size;
      RETURN_IF_ERROR(Step());
      ASSIGN_OR_RETURN(Value character, MakeText(text->Range(p, end)));
      items.push_back(std::move(character));
      p = end;
    }
    return items;
  } else {
    return WrongType(value, "something to iterate over");
  }
  RETURN_IF_ERROR(Step(static_cast<int64_t>(items.size())));
  return items;
}

absl::Status Runtime::ChargeText(const Value& value) {
  const Text* text = value.text();
  return text == nullptr ? absl::OkStatus() : WorkOn(*text);
}

}  // namespace millrace::jinja
