// out = silu(gate) * up, silu(v) = v / (1 + exp(-v)). Shazeer, arXiv 2002.05202.
#pragma once

#include <cstddef>

namespace millrace::kernels {

struct SwiGluArgs {
  const float* gate = nullptr;  // [count]
  const float* up = nullptr;    // [count]
  float* out = nullptr;         // [count]; may be gate or up
  size_t count = 0;
};

}  // namespace millrace::kernels
