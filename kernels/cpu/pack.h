// Weights from the layout of the file to that of the int8 kernels (packed_layout.h). Moves bytes only, so one
// version serves every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/weights.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

struct PackArgs {
  WeightMatrix from;      // of a type that is packed; not packed
  uint8_t* to = nullptr;  // PackedMatrixBytes(from) bytes
};

// 0: these weights are not packed.
size_t PackedMatrixBytes(const WeightMatrix& weights);
void PackMatrix(const PackArgs& args, WorkShare share);

}  // namespace millrace::kernels::cpu
