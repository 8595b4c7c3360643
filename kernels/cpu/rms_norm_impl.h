// Root mean square normalisation; the squares are added in the canonical order of matmul_impl.h.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/rms_norm.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

template <class V>
void RmsNorm(const RmsNormArgs& args, WorkShare share) {
  const WorkShare::Range rows = share.Of(args.rows);
  const size_t whole = args.columns / kVecLanes * kVecLanes;
  const size_t tail = args.columns - whole;
  for (size_t r = rows.begin; r < rows.end; ++r) {
    const float* x = args.x + r * args.columns;
    float* out = args.out + r * args.columns;
    V squares = V::Set1(0);
    for (size_t i = 0; i < whole; i += kVecLanes) {
      const V v = V::Load(x + i);
      squares = Fma(v, v, squares);
    }
    if (tail != 0) {
      const V v = V::LoadPartial(x + whole, tail);
      squares = Fma(v, v, squares);
    }
    const float mean = V::ReduceAdd(squares) / static_cast<float>(args.columns);
    const V scale = V::Set1(1.0f / __builtin_sqrtf(mean + args.epsilon));
    for (size_t i = 0; i < whole; i += kVecLanes) {
      Mul(Mul(V::Load(x + i), scale), V::Load(args.weight + i)).Store(out + i);
    }
    if (tail != 0) {
      const V v = Mul(Mul(V::LoadPartial(x + whole, tail), scale), V::LoadPartial(args.weight + whole, tail));
      v.StorePartial(out + whole, tail);
    }
  }
}

}  // namespace millrace::kernels::cpu
