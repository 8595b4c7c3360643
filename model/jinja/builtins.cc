#include "model/jinja/builtins.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {
namespace {

struct ParameterList {
  std::vector<absl::string_view> names;
  std::vector<bool> required;
};

ParameterList ParseParameters(absl::string_view row) {
  ParameterList list;
  for (absl::string_view name : absl::StrSplit(row, ' ', absl::SkipEmpty())) {
    bool required = name.back() != '?';
    if (!required) name.remove_suffix(1);
    list.names.push_back(name);
    list.required.push_back(required);
  }
  return list;
}

}  // namespace

absl::StatusOr<Value> CallBuiltin(Runtime& runtime, const Builtin& builtin, const Value& self,
                                  const Arguments& arguments) {
  RETURN_IF_ERROR(runtime.Step());
  Invocation call = {runtime, self, arguments, {}};
  if (builtin.parameters == "*") return builtin.function(call);
  ParameterList parameters = ParseParameters(builtin.parameters);
  if (arguments.positional.size() > parameters.names.size()) {
    return runtime.Error(absl::StrCat(builtin.name, ": ", arguments.positional.size(),
                                      " arguments, takes at most ", parameters.names.size()));
  }
  call.bound.resize(parameters.names.size());
  for (size_t i = 0; i < arguments.positional.size(); ++i) call.bound[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.keywords) {
    size_t i = 0;
    while (i < parameters.names.size() && parameters.names[i] != name) ++i;
    if (i == parameters.names.size())
      return runtime.Error(absl::StrCat(builtin.name, ": no argument '", name, "'"));
    if (call.bound[i] != nullptr)
      return runtime.Error(absl::StrCat(builtin.name, ": argument '", name, "' given twice"));
    call.bound[i] = &value;
  }
  for (size_t i = 0; i < parameters.names.size(); ++i) {
    if (parameters.required[i] && call.bound[i] == nullptr) {
      return runtime.Error(absl::StrCat(builtin.name, ": argument '", parameters.names[i], "' is missing"));
    }
  }
  return builtin.function(call);
}

}  // namespace millrace::jinja
