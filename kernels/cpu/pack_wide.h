// Packs the formats whose quants have to be taken apart first: those with five or six bits, and those of
// 256-element blocks. (packed_layout.h)
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/weights.h"

namespace millrace::kernels::cpu {

// Rows [row0, row0 + kGroupRows) of `from`, of type kQ5_0, kQ4_K, kQ5_K or kQ6_K, to the group at `to`; rows
// that `from` does not have are zeros.
void PackWideGroup(const WeightMatrix& from, size_t row0, uint8_t* to);

}  // namespace millrace::kernels::cpu
