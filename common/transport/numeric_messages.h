// Numeric choices between processes.
#pragma once

#include <optional>

#include "common/numeric_choice.h"
#include "millrace/v1/numeric.pb.h"

namespace millrace {

v1::ActivationType ToWire(ActivationType type);
v1::KvType ToWire(KvType type);

// Nothing for a value that this version does not know.
std::optional<ActivationType> FromWire(v1::ActivationType type);
std::optional<KvType> FromWire(v1::KvType type);

}  // namespace millrace
