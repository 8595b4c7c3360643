// exp(x) with the same bits on every instruction set.
//
// Cody and Waite's reduction: x = n ln 2 + r, |r| <= ln 2 / 2, then the Taylor polynomial of degree 7 (its
// remainder is under 6e-9) and a scaling by 2^n. Relative error under 1.5e-7; subnormal results, 0 and
// infinity come out as they should.
#pragma once

#include "kernels/cpu/inline.h"
#include "kernels/cpu/vec.h"

namespace millrace::kernels::cpu {

template <class V>
MILLRACE_KERNEL_INLINE V Exp(V x) {
  // Adding 1.5 * 2^23 rounds to an integer, which then sits in the low bits of the sum.
  const V shift = V::Set1(12582912.0f);
  x = Max(V::Set1(-110.0f), Min(V::Set1(100.0f), x));
  const V shifted = Fma(x, V::Set1(0x1.715476p+0f), shift);
  const V n = Sub(shifted, shift);
  V r = Fma(n, V::Set1(-0x1.62e400p-1f), x);
  r = Fma(n, V::Set1(-0x1.7f7d1cp-20f), r);
  V p = V::Set1(1.0f / 5040);
  p = Fma(p, r, V::Set1(1.0f / 720));
  p = Fma(p, r, V::Set1(1.0f / 120));
  p = Fma(p, r, V::Set1(1.0f / 24));
  p = Fma(p, r, V::Set1(1.0f / 6));
  p = Fma(p, r, V::Set1(0.5f));
  p = Fma(p, r, V::Set1(1.0f));
  p = Fma(p, r, V::Set1(1.0f));
  V out;
  for (size_t i = 0; i < V::kParts; ++i) {
    out.part[i] = V::Part::ScaleByPow2(p.part[i], shifted.part[i]);
  }
  return out;
}

}  // namespace millrace::kernels::cpu
