// What the int8 path has to give, computed plainly.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/weights.h"

namespace millrace::kernels {

struct Expected {
  std::vector<float> out;
  std::vector<double> bounds;
};

// From the same quantised inputs, in double precision. The float chain rounds each block's term twice on its
// way into the sum and the sum once for each term after it, each time by 2^-24 of at most the sum of the
// terms' magnitudes.
Expected Multiply(const std::vector<float>& x, size_t rows, const WeightMatrix& w);

}  // namespace millrace::kernels
