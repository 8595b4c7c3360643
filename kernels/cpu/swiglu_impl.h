// The gated activation of the feed-forward layer.
#pragma once

#include "kernels/cpu/exp.h"
#include "kernels/cpu/inline.h"
#include "kernels/swiglu.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

template <class V>
MILLRACE_KERNEL_INLINE V SiluTimes(V gate, V up) {
  const V one = V::Set1(1.0f);
  const V denominator = Add(one, Exp(Sub(V::Set1(0.0f), gate)));
  return Mul(Div(gate, denominator), up);
}

template <class V>
void SwiGlu(const SwiGluArgs& args, WorkShare share) {
  const WorkShare::Range range = share.Of(args.count, kVecLanes);
  const size_t whole = range.begin + (range.end - range.begin) / kVecLanes * kVecLanes;
  for (size_t i = range.begin; i < whole; i += kVecLanes) {
    SiluTimes(V::Load(args.gate + i), V::Load(args.up + i)).Store(args.out + i);
  }
  if (const size_t tail = range.end - whole; tail != 0) {
    const V v = SiluTimes(V::LoadPartial(args.gate + whole, tail), V::LoadPartial(args.up + whole, tail));
    v.StorePartial(args.out + whole, tail);
  }
}

}  // namespace millrace::kernels::cpu
