// Filters, tests, methods and functions that templates call. Each is one row of a table.
#pragma once

#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/jinja/value.h"

namespace millrace::jinja {

class Runtime;

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<absl::string_view, Value>> keywords;
};

// What a builtin is given. `bound` has one entry per parameter of its row, null where the caller gave none.
struct Invocation {
  Runtime& runtime;
  const Value& self;  // the filtered or tested value, the object of a method
  const Arguments& raw;
  std::vector<const Value*> bound;

  bool Given(size_t i) const { return bound[i] != nullptr; }
  const Value& operator[](size_t i) const { return *bound[i]; }
};

using NativeFunction = absl::StatusOr<Value> (*)(const Invocation&);

struct Builtin {
  absl::string_view name;
  // Names in order, separated by a blank, with a "?" behind those that may be left out; "*": takes raw
  // arguments.
  absl::string_view parameters;
  NativeFunction function;
};

// Null if there is none of that name.
const Builtin* FindFilter(absl::string_view name);
const Builtin* FindTest(absl::string_view name);
const Builtin* FindTextMethod(absl::string_view name);
const Builtin* FindDictMethod(absl::string_view name);
const Builtin* FindListMethod(absl::string_view name);
const Builtin* FindLoopMethod(absl::string_view name);
const Builtin* FindFunction(absl::string_view name);

absl::Span<const Builtin> TextFilters();
absl::Span<const Builtin> SequenceFilters();
absl::Span<const Builtin> ValueFilters();

// Binds the arguments to the row's parameters and runs it. INVALID_ARGUMENT: missing, unknown or too many
// arguments.
absl::StatusOr<Value> CallBuiltin(Runtime& runtime, const Builtin& builtin, const Value& self,
                                  const Arguments& arguments);

}  // namespace millrace::jinja
