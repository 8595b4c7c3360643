// Finds races on shared memory in kernels that were compiled with -fsanitize=thread: tsan_hooks.cc takes the
// place of the sanitizer's own runtime.
//
// Two accesses of one byte by different threads of a block, not both reads and not both atomic, are a race
// unless a barrier of the block lies between them, or both threads are of one warp and a __syncwarp of all
// its lanes does. Shuffles, votes, ldmatrix and mma order nothing (CUDA C++ Programming Guide, "Warp Shuffle
// Functions"); nor does a __syncwarp of some lanes here. ldmatrix reads on behalf of the whole warp, cp.async
// writes from its start to the wait that covers it. Accesses that the lane order of a run does not make are
// not seen.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace cuda_on_cpu {

// Each pair of places in the code at most once: what, where (file+offset, for addr2line), in which kernel.
// Thread: any, while no kernel runs.
std::vector<std::string> TakeRaces();

}  // namespace cuda_on_cpu
