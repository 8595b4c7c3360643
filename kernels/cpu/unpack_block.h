// The unsigned quants of 32 elements of a block, one in each byte, in order. Layouts: kernels/weights.h.
//
// Loops that compilers turn into vector instructions, under a type of the file that includes this: files of
// different instruction sets must not share code.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/block_layout.h"
#include "kernels/cpu/inline.h"

namespace millrace::kernels::cpu {

template <class V>
struct Unpack {
  // q: 0 .. 31, 16 standing for zero.
  MILLRACE_KERNEL_INLINE static void Q5_0(const uint8_t* block, uint8_t* q) {
    const uint8_t* h = block + kHalfBytes;
    const uint8_t* nibbles = h + kBlockElements / 8;
    const uint32_t high = uint32_t{h[0]} | uint32_t{h[1]} << 8 | uint32_t{h[2]} << 16 | uint32_t{h[3]} << 24;
    for (uint32_t j = 0; j < kBlockElements / 2; ++j) {
      q[j] = static_cast<uint8_t>((nibbles[j] & 15) | (high >> j & 1) << 4);
      q[j + kBlockElements / 2] = static_cast<uint8_t>(nibbles[j] >> 4 | (high >> (j + 16) & 1) << 4);
    }
  }

  // Sub-block s of a block; q: 0 .. 15.
  MILLRACE_KERNEL_INLINE static void Q4_K(const uint8_t* block, size_t s, uint8_t* q) {
    const uint8_t* nibbles = block + kQ4_KBytes - kSuperNibbleBytes + s / 2 * kBlockElements;
    const int shift = s % 2 == 0 ? 0 : 4;
    for (size_t t = 0; t < kBlockElements; ++t) q[t] = static_cast<uint8_t>(nibbles[t] >> shift & 15);
  }

  // q: 0 .. 31.
  MILLRACE_KERNEL_INLINE static void Q5_K(const uint8_t* block, size_t s, uint8_t* q) {
    const uint8_t* h = block + 2 * kHalfBytes + kPackedScaleBytes;
    const uint8_t* nibbles = h + kBlockElements + s / 2 * kBlockElements;
    const int shift = s % 2 == 0 ? 0 : 4;
    const int bit = static_cast<int>(s);
    for (size_t t = 0; t < kBlockElements; ++t) {
      q[t] = static_cast<uint8_t>((nibbles[t] >> shift & 15) | (h[t] >> bit & 1) << 4);
    }
  }

  // q: 0 .. 63, 32 standing for zero.
  MILLRACE_KERNEL_INLINE static void Q6_K(const uint8_t* block, size_t s, uint8_t* q) {
    const uint8_t* nibbles = block + s / 4 * (2 * kBlockElements) + s % 2 * kBlockElements;
    const uint8_t* h = block + kSuperNibbleBytes + s / 4 * kBlockElements;
    const int shift = s % 4 < 2 ? 0 : 4;
    const int bits = static_cast<int>(s % 4 * 2);
    for (size_t t = 0; t < kBlockElements; ++t) {
      q[t] = static_cast<uint8_t>((nibbles[t] >> shift & 15) | (h[t] >> bits & 3) << 4);
    }
  }

  // Scale and minimum of sub-block s of kQ4_K and kQ5_K, from the 12 bytes at `b`.
  MILLRACE_KERNEL_INLINE static void SixBits(const uint8_t* b, size_t s, uint8_t* scale, uint8_t* min) {
    if (s < 4) {
      *scale = b[s] & 63;
      *min = b[s + 4] & 63;
    } else {
      *scale = static_cast<uint8_t>((b[s + 4] & 15) | (b[s - 4] >> 6) << 4);
      *min = static_cast<uint8_t>(b[s + 4] >> 4 | (b[s] >> 6) << 4);
    }
  }
};

}  // namespace millrace::kernels::cpu
