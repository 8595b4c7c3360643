#include "kernels/swiglu.h"

#include <cmath>

#include "kernels/reference/ops.h"

namespace millrace::kernels::reference {

void SwiGlu(const SwiGluArgs& args) {
  for (size_t i = 0; i < args.count; ++i) {
    const float gate = args.gate[i];
    args.out[i] = gate / (1.0f + std::exp(-gate)) * args.up[i];
  }
}

}  // namespace millrace::kernels::reference
