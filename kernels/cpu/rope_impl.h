// Rotary embedding. The fma is spelled out because GCC 12 makes plain products and sums of such pairs into
// fmaddsub, even with -ffp-contract=off, and only where the instruction set has it.
#pragma once

#include "kernels/rope.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

template <class V>
void Rope(const RopeArgs& args, WorkShare share) {
  const WorkShare::Range rows = share.Of(args.rows);
  const size_t pairs = args.rope_dims / 2;
  for (size_t r = rows.begin; r < rows.end; ++r) {
    const float* cos_sin = args.cos_sin + args.positions[r] * args.rope_dims;
    for (size_t h = 0; h < args.heads; ++h) {
      float* head = args.x + (r * args.heads + h) * args.head_size;
      for (size_t i = 0; i < pairs; ++i) {
        const float cosine = cos_sin[2 * i];
        const float sine = cos_sin[2 * i + 1];
        const float even = head[2 * i];
        const float odd = head[2 * i + 1];
        head[2 * i] = __builtin_fmaf(-odd, sine, even * cosine);
        head[2 * i + 1] = __builtin_fmaf(odd, cosine, even * sine);
      }
    }
  }
}

}  // namespace millrace::kernels::cpu
