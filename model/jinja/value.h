// The values of a template run, after Python's: numbers, tainted strings, lists, dictionaries, namespaces,
// callables.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "model/jinja/text.h"

namespace millrace::jinja {

struct List;
struct Dict;
struct Namespace;
struct LoopState;
struct Callable;

// Name of what is missing, for the error when it is used. The strings live as long as the template.
struct Undefined {
  absl::string_view name;   // empty if the key was computed
  absl::string_view owner;  // type of the object it was looked up in; empty for a variable
};
struct None {};

using TextPointer = std::shared_ptr<const Text>;

// Cheap to copy. Lists, dictionaries and the like are owned by the Runtime that made them; a Value must not
// outlive it.
class Value {
 public:
  Value() : data_(Undefined{}) {}
  explicit Value(Undefined undefined) : data_(undefined) {}
  explicit Value(None none) : data_(none) {}
  explicit Value(bool boolean) : data_(boolean) {}
  explicit Value(int64_t integer) : data_(integer) {}
  explicit Value(double number) : data_(number) {}
  explicit Value(TextPointer text) : data_(std::move(text)) {}
  explicit Value(List* list) : data_(list) {}
  explicit Value(Dict* dict) : data_(dict) {}
  explicit Value(Namespace* space) : data_(space) {}
  explicit Value(LoopState* loop) : data_(loop) {}
  explicit Value(const Callable* callable) : data_(callable) {}
  explicit Value(const void*) = delete;  // no pointer turns into a boolean

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(data_); }  // not a boolean
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_text() const { return std::holds_alternative<TextPointer>(data_); }
  bool is_number() const { return is_bool() || is_integer() || is_float(); }

  // Null when the value is of another kind.
  const Undefined* undefined() const { return std::get_if<Undefined>(&data_); }
  const Text* text() const { return is_text() ? std::get<TextPointer>(data_).get() : nullptr; }
  List* list() const { return Pointer<List*>(); }
  Dict* dict() const { return Pointer<Dict*>(); }
  Namespace* name_space() const { return Pointer<Namespace*>(); }
  LoopState* loop() const { return Pointer<LoopState*>(); }
  const Callable* callable() const { return Pointer<const Callable*>(); }
  // Integers and booleans.
  std::optional<int64_t> integer() const;
  // Any number. REQUIRES: is_number().
  double number() const;

  // Python's `is`: same object, or equal singletons and small scalars.
  bool SameAs(const Value& other) const;
  // Python's name of the type, for messages.
  absl::string_view TypeName() const;

 private:
  template <typename T>
  T Pointer() const {
    const T* pointer = std::get_if<T>(&data_);
    return pointer == nullptr ? nullptr : *pointer;
  }
  std::variant<Undefined, None, bool, int64_t, double, TextPointer, List*, Dict*, Namespace*, LoopState*,
               const Callable*>
      data_;
};

// What Python distinguishes: a generator is true, has no length and is empty after one pass; a view has no
// subscript.
enum class ListKind : uint8_t { kList, kTuple, kGenerator, kView };

struct List {
  ListKind kind;
  std::vector<Value> items;
};

// Keeps the order of insertion.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  // Null if there is no such key.
  const Value* Find(absl::string_view key) const;
};

struct Namespace {
  absl::flat_hash_map<std::string, Value> attributes;
};

// The `loop` variable.
struct LoopState {
  std::vector<Value> items;  // all that the for statement runs over
  size_t index0 = 0;
  int64_t depth0 = 0;
  std::optional<Value> last_changed;
};

}  // namespace millrace::jinja
