// RmsNorm, Rope, SwiGlu, AddPartials and Embed on a device (cuda_ops.h): equal bits with the CPU backends.
//
// RmsNorm and Embed: a block a row. Rope: a block a row, a thread a pair. SwiGlu and AddPartials: a thread
// for four elements, where pointers allow loads of 16 bytes. None of them needs more alignment than its
// element type's. Embed reads rows of a table as it is in the file, copied to device memory.
#pragma once

#include "kernels/cuda/cuda_ops.h"

namespace millrace::kernels::cuda {

// Partials that one launch adds; more take several.
inline constexpr size_t kPartialsPerLaunch = 16;

}  // namespace millrace::kernels::cuda
