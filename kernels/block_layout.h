// Sizes of the quantised blocks, shared by the backends (see weights.h).
#pragma once

#include <cstddef>

namespace millrace::kernels {

inline constexpr size_t kBlockElements = 32;
inline constexpr size_t kHalfBytes = 2;
inline constexpr size_t kQ8_0Bytes = kHalfBytes + kBlockElements;
inline constexpr size_t kQ4_0Bytes = kHalfBytes + kBlockElements / 2;
inline constexpr size_t kQ4_1Bytes = 2 * kHalfBytes + kBlockElements / 2;

}  // namespace millrace::kernels
