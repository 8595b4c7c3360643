#include "common/numeric_choice.h"

#include "absl/strings/str_cat.h"

namespace millrace {

absl::string_view ActivationTypeName(ActivationType type) {
  return type == ActivationType::kInt8 ? "int8" : "f32";
}

std::optional<ActivationType> ParseActivationType(absl::string_view name) {
  for (const ActivationType type : {ActivationType::kF32, ActivationType::kInt8}) {
    if (name == ActivationTypeName(type)) return type;
  }
  return std::nullopt;
}

std::string NumericClass(absl::string_view family, const NumericChoice& choice) {
  return absl::StrCat(family, "/", ActivationTypeName(choice.activations), "/kv-", KvTypeName(choice.kv));
}

}  // namespace millrace
