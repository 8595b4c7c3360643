// Sizes of the quantised blocks, shared by the backends (see weights.h).
#pragma once

#include <cstddef>

namespace millrace::kernels {

inline constexpr size_t kBlockElements = 32;
inline constexpr size_t kSuperBlockElements = 256;
inline constexpr size_t kSubBlocks = kSuperBlockElements / kBlockElements;
inline constexpr size_t kHalfBytes = 2;
inline constexpr size_t kQ8_0Bytes = kHalfBytes + kBlockElements;
inline constexpr size_t kQ4_0Bytes = kHalfBytes + kBlockElements / 2;
inline constexpr size_t kQ4_1Bytes = 2 * kHalfBytes + kBlockElements / 2;
inline constexpr size_t kQ5_0Bytes = kHalfBytes + kBlockElements / 8 + kBlockElements / 2;

// Six-bit scales and minima of a block of kQ4_K or kQ5_K.
inline constexpr size_t kPackedScaleBytes = 12;
inline constexpr size_t kSuperNibbleBytes = kSuperBlockElements / 2;
inline constexpr size_t kQ4_KBytes = 2 * kHalfBytes + kPackedScaleBytes + kSuperNibbleBytes;
inline constexpr size_t kQ5_KBytes = kQ4_KBytes + kSuperBlockElements / 8;
inline constexpr size_t kQ6_KScales = kSuperBlockElements / 16;
inline constexpr size_t kQ6_KBytes = kSuperNibbleBytes + kSuperBlockElements / 4 + kQ6_KScales + kHalfBytes;

}  // namespace millrace::kernels
