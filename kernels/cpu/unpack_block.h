// The unsigned quants of 32 elements of a block, one in each byte, in order. Layouts: kernels/weights.h.
//
// Eight bytes at a time in plain words: fast on every instruction set, and compilers turn them into vectors
// where there are any. Under a type of the file that includes this: files of different instruction sets must
// not share code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/block_layout.h"
#include "kernels/cpu/inline.h"

namespace millrace::kernels::cpu {

template <class V>
struct Unpack {
  static constexpr size_t kWord = sizeof(uint64_t);
  static constexpr uint64_t kOnes = 0x0101010101010101;  // times b: b in every byte

  // q: 0 .. 31, 16 standing for zero.
  MILLRACE_KERNEL_INLINE static void Q5_0(const uint8_t* block, uint8_t* q) {
    const uint8_t* h = block + kHalfBytes;
    const uint8_t* nibbles = h + kBlockElements / 8;
    for (size_t i = 0; i < 2; ++i) {
      const uint64_t both = Load(nibbles + i * kWord);
      Store(q + i * kWord, (both & 15 * kOnes) | FifthBits(h[i]));
      Store(q + (i + 2) * kWord, (both >> 4 & 15 * kOnes) | FifthBits(h[i + 2]));
    }
  }

  // Sub-block s of a block; q: 0 .. 15.
  MILLRACE_KERNEL_INLINE static void Q4_K(const uint8_t* block, size_t s, uint8_t* q) {
    const uint8_t* nibbles = block + kQ4_KBytes - kSuperNibbleBytes + s / 2 * kBlockElements;
    const int shift = s % 2 == 0 ? 0 : 4;
    for (size_t i = 0; i < kBlockElements; i += kWord) Store(q + i, Load(nibbles + i) >> shift & 15 * kOnes);
  }

  // q: 0 .. 31.
  MILLRACE_KERNEL_INLINE static void Q5_K(const uint8_t* block, size_t s, uint8_t* q) {
    const uint8_t* h = block + 2 * kHalfBytes + kPackedScaleBytes;
    const uint8_t* nibbles = h + kBlockElements + s / 2 * kBlockElements;
    const int shift = s % 2 == 0 ? 0 : 4;
    for (size_t i = 0; i < kBlockElements; i += kWord) {
      const uint64_t low = Load(nibbles + i) >> shift & 15 * kOnes;
      Store(q + i, low | (Load(h + i) >> s & kOnes) << 4);
    }
  }

  // q: 0 .. 63, 32 standing for zero.
  MILLRACE_KERNEL_INLINE static void Q6_K(const uint8_t* block, size_t s, uint8_t* q) {
    const uint8_t* nibbles = block + s / 4 * (2 * kBlockElements) + s % 2 * kBlockElements;
    const uint8_t* h = block + kSuperNibbleBytes + s / 4 * kBlockElements;
    const int shift = s % 4 < 2 ? 0 : 4;
    const size_t bits = s % 4 * 2;
    for (size_t i = 0; i < kBlockElements; i += kWord) {
      const uint64_t low = Load(nibbles + i) >> shift & 15 * kOnes;
      Store(q + i, low | (Load(h + i) >> bits & 3 * kOnes) << 4);
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

 private:
  MILLRACE_KERNEL_INLINE static uint64_t Load(const uint8_t* p) {
    uint64_t word;
    std::memcpy(&word, p, kWord);
    return word;
  }
  MILLRACE_KERNEL_INLINE static void Store(uint8_t* p, uint64_t word) { std::memcpy(p, &word, kWord); }
  // Byte i is 16 if bit i of `bits` is set: alone in its byte the bit is at most 0x80, and adding 0x7f
  // carries into the top bit exactly if there is one.
  MILLRACE_KERNEL_INLINE static uint64_t FifthBits(uint8_t bits) {
    const uint64_t alone = bits * kOnes & 0x8040201008040201;
    return (alone + 0x7f * kOnes) >> 3 & 16 * kOnes;
  }
};

}  // namespace millrace::kernels::cpu
