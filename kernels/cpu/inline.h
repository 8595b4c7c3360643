// Vectors stay in registers only where the functions that take them are inlined, which compilers stop doing
// in large kernels.
#pragma once

#define MILLRACE_KERNEL_INLINE inline __attribute__((always_inline))
