// What all stages of a cluster compute with.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "common/kv_type.h"

namespace millrace {

// What rows are multiplied with quantised weights as: as they are, or rounded to 8 bits block by block.
enum class ActivationType { kF32, kInt8 };

// "f32" or "int8", and back; nothing for any other name.
absl::string_view ActivationTypeName(ActivationType type);
std::optional<ActivationType> ParseActivationType(absl::string_view name);

struct NumericChoice {
  ActivationType activations = ActivationType::kF32;
  KvType kv = KvType::kF32;

  bool operator==(const NumericChoice& other) const {
    return activations == other.activations && kv == other.kv;
  }
};

// Such as "cpu/int8/kv-f16". Workers for which it is equal compute equal bits. `family`: of the backend,
// "cpu".
std::string NumericClass(absl::string_view family, const NumericChoice& choice);

}  // namespace millrace
