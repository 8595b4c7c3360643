#include "kernels/rope.h"

#include "kernels/reference/ops.h"

namespace millrace::kernels::reference {

void Rope(const RopeArgs& args) {
  const size_t pairs = args.rope_dims / 2;
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t h = 0; h < args.heads; ++h) {
      for (size_t i = 0; i < pairs; ++i) {
        const float* cos_sin = args.cos_sin + (args.positions[r] * pairs + i) * 2;
        float* pair = args.x + (r * args.heads + h) * args.head_size + 2 * i;
        const float even = pair[0];
        const float odd = pair[1];
        pair[0] = even * cos_sin[0] - odd * cos_sin[1];
        pair[1] = even * cos_sin[1] + odd * cos_sin[0];
      }
    }
  }
}

}  // namespace millrace::kernels::reference
