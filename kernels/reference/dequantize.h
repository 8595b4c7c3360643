// Stored weights as float32, written out plainly: the specification of the formats in weights.h.
#pragma once

#include <cstddef>

#include "kernels/weights.h"

namespace millrace::kernels::reference {

// IEEE 754 binary16 to binary32, exact.
float HalfToFloat(uint16_t half);

// Element `column` of row `row`.
float WeightAt(const WeightMatrix& weights, size_t row, size_t column);

}  // namespace millrace::kernels::reference
