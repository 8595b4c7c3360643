// The sums of the segments of a product, added in order.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/matmul.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

template <class V>
void AddPartials(const AddPartialsArgs& args, WorkShare share) {
  const WorkShare::Range rows = share.Of(args.rows);
  for (size_t r = rows.begin; r < rows.end; ++r) {
    const size_t row = r * args.columns;
    size_t i = args.begin;
    for (; i < args.end; i += kVecLanes) {
      const size_t lanes = args.end - i < kVecLanes ? args.end - i : kVecLanes;
      V sum = V::LoadPartial(args.out + row + i, lanes);
      for (const float* partial : args.partials) sum = Add(sum, V::LoadPartial(partial + row + i, lanes));
      sum.StorePartial(args.out + row + i, lanes);
    }
  }
}

}  // namespace millrace::kernels::cpu
