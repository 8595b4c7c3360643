// A weight matrix as the kernels see it: rows of quantised blocks in memory that somebody else owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::kernels {

// Block layouts as in GGUF (ggml), little endian. Blocks of 32 elements:
//   kQ8_0  f16 d, 32 x int8 q                       value = d * q
//   kQ4_0  f16 d, 16 bytes of nibbles q             value = d * (q - 8)
//   kQ4_1  f16 d, f16 m, 16 bytes of nibbles q      value = d * q + m
//   kQ5_0  f16 d, u32 h, 16 bytes of nibbles q      value = d * (q + 16 * (bit j of h) - 16)
// Element j < 16 of a block is the low nibble of byte j, element j + 16 the high one.
//
// Blocks of 256 elements (ggml-quants.c of ggml), s = j / 32 being the sub-block of element j, t = j % 32:
//   kQ4_K  f16 d, f16 dmin, 12 bytes of scales, 128 bytes of nibbles
//          value = d * scale[s] * q - dmin * min[s]; q: nibble s % 2 (0: low) of byte 32 * (s / 2) + t
//   kQ5_K  the same with 32 bytes h before the nibbles; q = nibble + 16 * (bit s of h[t])
//   kQ6_K  128 bytes of nibbles, 64 bytes h, 16 x int8 scale, f16 d
//          value = d * scale[j / 16] * (q - 32); q = nibble + 16 * (bits 2 * (s % 4) and up of
//          h[32 * (s / 4) + t], two of them); the nibble is number s % 4 / 2 (0: low) of byte
//          64 * (s / 4) + 32 * (s % 2) + t
// Scales and minima of kQ4_K and kQ5_K have six bits. Of the 12 bytes b: for s < 4 they are the low six bits
// of b[s] and of b[s + 4]; for s >= 4 their low four bits are the nibbles of b[s + 4] (scale: the low one),
// their high two bits the high two bits of b[s - 4] and of b[s].
enum class WeightType { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ4_K, kQ5_K, kQ6_K };

// [rows, columns], row-major: row r starts at data + r * row_bytes. `columns` is a multiple of the block
// length; a row may be longer (a slice of the columns of a larger matrix).
struct WeightMatrix {
  const uint8_t* data = nullptr;
  WeightType type = WeightType::kF32;
  size_t rows = 0;
  size_t columns = 0;
  size_t row_bytes = 0;
  // `data` is what Backend::Pack wrote, for the backend that wrote it; row_bytes says nothing. Not for Embed.
  bool packed = false;
};

// Elements of one block (1 for the types that are not quantised), and bytes of one block.
size_t WeightBlockElements(WeightType type);
size_t WeightBlockBytes(WeightType type);

}  // namespace millrace::kernels
