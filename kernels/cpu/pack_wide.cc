#include "kernels/cpu/pack_wide.h"

#include <cstring>

#include "kernels/block_layout.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/unpack_block.h"

namespace millrace::kernels::cpu {
namespace {

// Names the instantiation of what other instruction sets instantiate, too.
struct Packing;
using Quants = Unpack<Packing>;

// A block of each row of a group, and the same step by step.
struct alignas(64) Tile {
  uint8_t row[kGroupRows][kBlockElements];
  uint8_t step[kSteps][kStepBytes];
};

void SortIntoSteps(Tile& tile) {
  for (size_t s = 0; s < kSteps; ++s) {
    for (size_t r = 0; r < kGroupRows; ++r) {
      std::memcpy(&tile.step[s][kStepElements * r], &tile.row[r][kStepElements * s], kStepElements);
    }
  }
}

void PutNibbles(const Tile& tile, uint8_t* to) {
  for (size_t s = 0; s < kSteps / 2; ++s) {
    const uint8_t* low = tile.step[s];
    const uint8_t* high = tile.step[s + kSteps / 2];
    for (size_t i = 0; i < kStepBytes; ++i) {
      to[s * kStepBytes + i] = static_cast<uint8_t>((low[i] & 15) | (high[i] & 15) << 4);
    }
  }
}

void PutFifthBits(const Tile& tile, uint8_t* to) {
  const auto& s = tile.step;
  for (size_t i = 0; i < kStepBytes; ++i) {
    to[i] = static_cast<uint8_t>((s[0][i] & 16) >> 4 | (s[1][i] & 16) >> 3 | (s[2][i] & 16) >> 2 |
                                 (s[3][i] & 16) >> 1 | (s[4][i] & 16) | (s[5][i] & 16) << 1 |
                                 (s[6][i] & 16) << 2 | (s[7][i] & 16) << 3);
  }
}

void PutHighPairs(const Tile& tile, uint8_t* to) {
  for (size_t half = 0; half < 2; ++half) {
    const auto* s = tile.step + half * kSteps / 2;
    for (size_t i = 0; i < kStepBytes; ++i) {
      to[half * kStepBytes + i] =
          static_cast<uint8_t>(s[0][i] >> 4 | s[1][i] >> 4 << 2 | s[2][i] >> 4 << 4 | s[3][i] >> 4 << 6);
    }
  }
}

void PutQuants(WeightType type, Tile& tile, uint8_t* record) {
  SortIntoSteps(tile);
  PutNibbles(tile, record);
  uint8_t* high = record + kSteps / 2 * kStepBytes;
  if (type == WeightType::kQ5_0 || type == WeightType::kQ5_K) PutFifthBits(tile, high);
  if (type == WeightType::kQ6_K) PutHighPairs(tile, high);
}

// Records of a group of `rows` rows, the first block of each from `from` on.
struct Source {
  const uint8_t* from;
  size_t row_bytes;
  size_t rows;
};

void PackQ5_0(const Source& source, Tile& tile, uint8_t* record) {
  for (size_t r = 0; r < source.rows; ++r) {
    const uint8_t* block = source.from + r * source.row_bytes;
    Quants::Q5_0(block, tile.row[r]);
    std::memcpy(record + PackedRecord<WeightType::kQ5_0>::kScales + r * kHalfBytes, block, kHalfBytes);
  }
  PutQuants(WeightType::kQ5_0, tile, record);
}

template <WeightType type>
void PackWithMinimum(const Source& source, Tile& tile, uint8_t* to) {
  using Record = PackedRecord<type>;
  for (size_t r = 0; r < source.rows; ++r) {
    const uint8_t* block = source.from + r * source.row_bytes;
    std::memcpy(to + r * kHalfBytes, block, kHalfBytes);
    uint8_t* minus_dmin = to + (kGroupRows + r) * kHalfBytes;
    std::memcpy(minus_dmin, block + kHalfBytes, kHalfBytes);
    minus_dmin[1] ^= 0x80;
  }
  for (size_t s = 0; s < kSubBlocks; ++s) {
    uint8_t* record = to + Record::kHeaderBytes + s * Record::kBytes;
    for (size_t r = 0; r < source.rows; ++r) {
      const uint8_t* block = source.from + r * source.row_bytes;
      Quants::SixBits(block + 2 * kHalfBytes, s, record + Record::kScales + r, record + Record::kMins + r);
      if constexpr (type == WeightType::kQ5_K) {
        Quants::Q5_K(block, s, tile.row[r]);
      } else {
        Quants::Q4_K(block, s, tile.row[r]);
      }
    }
    PutQuants(type, tile, record);
  }
}

void PackQ6_K(const Source& source, Tile& tile, uint8_t* to) {
  using Record = PackedRecord<WeightType::kQ6_K>;
  for (size_t r = 0; r < source.rows; ++r) {
    const uint8_t* d = source.from + r * source.row_bytes + kQ6_KBytes - kHalfBytes;
    std::memcpy(to + r * kHalfBytes, d, kHalfBytes);
  }
  for (size_t s = 0; s < kSubBlocks; ++s) {
    uint8_t* record = to + Record::kHeaderBytes + s * Record::kBytes;
    for (size_t r = 0; r < source.rows; ++r) {
      const uint8_t* block = source.from + r * source.row_bytes;
      const uint8_t* two = block + kQ6_KBytes - kHalfBytes - kQ6_KScales + 2 * s;
      record[Record::kScales + r] = two[0];
      record[Record::kScales + kGroupRows + r] = two[1];
      Quants::Q6_K(block, s, tile.row[r]);
    }
    PutQuants(WeightType::kQ6_K, tile, record);
  }
}

}  // namespace

void PackWideGroup(const WeightMatrix& from, size_t row0, uint8_t* to) {
  const size_t rows = from.rows - row0 < kGroupRows ? from.rows - row0 : kGroupRows;
  const size_t bytes = PackedBlockBytes(from.type);
  Tile tile = {};
  for (size_t b = 0; b < from.columns / WeightBlockElements(from.type); ++b, to += bytes) {
    if (rows < kGroupRows) std::memset(to, 0, bytes);
    const Source source = {from.data + row0 * from.row_bytes + b * WeightBlockBytes(from.type),
                           from.row_bytes, rows};
    switch (from.type) {
      case WeightType::kQ5_0:
        PackQ5_0(source, tile, to);
        break;
      case WeightType::kQ4_K:
        PackWithMinimum<WeightType::kQ4_K>(source, tile, to);
        break;
      case WeightType::kQ5_K:
        PackWithMinimum<WeightType::kQ5_K>(source, tile, to);
        break;
      case WeightType::kQ6_K:
        PackQ6_K(source, tile, to);
        break;
      default:
        break;
    }
  }
}

}  // namespace millrace::kernels::cpu
