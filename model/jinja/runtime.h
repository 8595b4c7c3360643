// What one rendering owns: its values, its limits, the place it is at. Operations every part of the
// interpreter needs.
#pragma once

#include <cstdint>
#include <ctime>
#include <deque>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/jinja/ast.h"
#include "model/jinja/builtins.h"
#include "model/jinja/value.h"

namespace millrace::jinja {

inline constexpr int64_t kMaxSteps = 1'000'000;        // evaluated nodes, visited elements
inline constexpr int64_t kMaxWorkBytes = 256ll << 20;  // bytes of strings copied, or scanned as dearly
inline constexpr int64_t kMaxLiveBytes = 128ll
                                         << 20;  // strings alive plus every list, dictionary, scope made
inline constexpr int64_t kMaxRange = 100'000;    // as jinja2's sandbox
inline constexpr int kMaxDepth = 250;            // nested evaluation, nested values

// Variables of a block, loop or macro.
struct Scope {
  Scope* parent = nullptr;
  absl::flat_hash_map<absl::string_view, Value> variables;
};

struct Callable {
  absl::string_view name;
  const Builtin* builtin = nullptr;  // a function, or a method of `self`
  Value self;
  const Stmt* macro = nullptr;  // or a macro or caller() with its surrounding scope
  Scope* scope = nullptr;
};

// Thread: one.
class Runtime {
 public:
  explicit Runtime(const std::tm& local_time) : local_time_(local_time) {}
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // The line errors name.
  void set_line(int line) { line_ = line; }
  int line() const { return line_; }
  absl::Status Error(absl::string_view message) const;
  absl::Status Exhausted(absl::string_view what) const;
  const std::tm& local_time() const { return local_time_; }

  // RESOURCE_EXHAUSTED once the budget is spent.
  absl::Status Step(int64_t count = 1);
  // `cost`: how many times dearer than copying a byte of it is.
  absl::Status Work(size_t bytes, int64_t cost = 1);
  absl::Status WorkOn(const Text& text, int64_t cost = 1) { return Work(text.size(), cost); }
  absl::Status Hold(int64_t bytes);

  absl::StatusOr<Value> MakeText(Text text);
  absl::StatusOr<Value> MakeText(absl::string_view trusted) { return MakeText(Text(trusted)); }
  absl::StatusOr<Value> MakeList(std::vector<Value> items, ListKind kind = ListKind::kList);
  absl::StatusOr<Dict*> MakeDict();
  absl::StatusOr<Namespace*> MakeNamespace();
  absl::StatusOr<LoopState*> MakeLoop(std::vector<Value> items);
  absl::StatusOr<Scope*> MakeScope(Scope* parent);
  absl::StatusOr<Value> MakeCallable(Callable callable);

  // Grow a container, charged.
  absl::Status Append(List* list, Value item);
  absl::Status SetItem(Dict* dict, Value key, Value value);

  // Python's bool(), len(), iter(); the last empties a generator.
  bool Truth(const Value& value) const;
  absl::StatusOr<int64_t> Length(const Value& value);
  absl::StatusOr<std::vector<Value>> Iterate(const Value& value);
  // Python's ==, <, in.
  absl::StatusOr<bool> Equal(const Value& a, const Value& b, int depth = 0);
  absl::StatusOr<bool> Less(const Value& a, const Value& b, int depth = 0);
  absl::StatusOr<bool> Contains(const Value& container, const Value& item);
  // Python's str().
  absl::StatusOr<Text> ToText(const Value& value);
  absl::Status AppendText(const Value& value, Text* out);
  // Python's a + b and the like; kIn and comparisons included.
  absl::StatusOr<Value> Apply(Operator op, const Value& a, const Value& b);
  // jinja2's getattr and getitem: what is missing is undefined. `name` lives as long as the template.
  absl::StatusOr<Value> Attribute(const Value& object, absl::string_view name);
  absl::StatusOr<Value> Item(const Value& object, const Value& key);
  // object[start:stop:step]; `bounds` are the three, none where left out.
  absl::StatusOr<Value> Slice(const Value& object, const Value (&bounds)[3]);
  // A use of an undefined value, or of a value of the wrong kind.
  absl::Status WrongType(const Value& value, absl::string_view wanted) const;

 private:
  absl::Status ChargeText(const Value& value);
  absl::StatusOr<bool> EqualLists(const List& a, const List& b, int depth);
  absl::StatusOr<bool> EqualDicts(const Dict& a, const Dict& b, int depth);
  absl::StatusOr<Value> ApplyNumbers(Operator op, const Value& a, const Value& b);
  absl::StatusOr<Value> Add(const Value& a, const Value& b);
  absl::StatusOr<Value> Repeat(const Value& sequence, int64_t count);
  // An attribute Python's own getattr would find; undefined if there is none.
  absl::StatusOr<Value> OwnAttribute(const Value& object, absl::string_view name);
  // What object[key] finds; undefined if there is nothing.
  absl::StatusOr<Value> Subscript(const Value& object, const Value& key);
  absl::Status AppendRepr(const Value& value, int depth, Text* out);
  absl::Status AppendListRepr(const List& list, int depth, Text* out);

  // Declared before whatever holds strings: their destruction gives bytes back to it.
  int64_t live_bytes_ = 0;
  int64_t steps_ = 0;
  int64_t work_bytes_ = 0;
  int line_ = 1;
  const std::tm local_time_;
  std::deque<List> lists_;
  std::deque<Dict> dicts_;
  std::deque<Namespace> namespaces_;
  std::deque<LoopState> loops_;
  std::deque<Scope> scopes_;
  std::deque<Callable> callables_;
};

// Python's repr() of a float.
std::string FloatRepr(double number);
// Python's repr() of a string: quotes and escapes, each as trusted as the character it stands for.
void AppendTextRepr(const Text& text, Text* out);
// json.dumps with ensure_ascii off, as transformers calls it; indent < 0: one line.
absl::Status AppendJson(Runtime& runtime, const Value& value, int indent, int depth, Text* out);

}  // namespace millrace::jinja
