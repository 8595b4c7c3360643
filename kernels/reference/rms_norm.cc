#include "kernels/rms_norm.h"

#include <cmath>

#include "kernels/reference/ops.h"

namespace millrace::kernels::reference {

void RmsNorm(const RmsNormArgs& args) {
  for (size_t r = 0; r < args.rows; ++r) {
    const float* x = args.x + r * args.columns;
    float* out = args.out + r * args.columns;
    float squares = 0;
    for (size_t i = 0; i < args.columns; ++i) squares += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(args.columns) + args.epsilon);
    for (size_t i = 0; i < args.columns; ++i) out[i] = x[i] * scale * args.weight[i];
  }
}

}  // namespace millrace::kernels::reference
