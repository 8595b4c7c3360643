#include "kernels/cpu/pack.h"

#include <cstring>

#include "kernels/block_layout.h"
#include "kernels/cpu/pack_wide.h"
#include "kernels/cpu/packed_layout.h"

namespace millrace::kernels::cpu {
namespace {

// Four quants at a time; `flip` turns signed ones into unsigned ones.
template <size_t kQuantBytes, uint32_t flip>
void ScatterQuants(const uint8_t* quants, uint8_t* to) {
  for (size_t i = 0; i < kQuantBytes; i += kStepElements) {
    uint32_t four;
    std::memcpy(&four, quants + i, sizeof(four));
    four ^= flip;
    std::memcpy(to + i / kStepElements * kStepBytes, &four, sizeof(four));
  }
}

void CopyHalf(const uint8_t* from, uint8_t* to) {
  std::memcpy(to, from, kHalfBytes);
}

// One block of row `row` of a group into the group's record.
template <WeightType type>
void PackBlock(const uint8_t* block, size_t row, uint8_t* record) {
  using Record = PackedRecord<type>;
  uint8_t* quants = record + row * kStepElements;
  CopyHalf(block, record + Record::kScales + row * kHalfBytes);
  if constexpr (type == WeightType::kQ8_0) {
    ScatterQuants<kBlockElements, 0x80808080u>(block + kHalfBytes, quants);
  } else if constexpr (type == WeightType::kQ4_0) {
    ScatterQuants<kBlockElements / 2, 0>(block + kHalfBytes, quants);
  } else {
    static_assert(type == WeightType::kQ4_1);
    CopyHalf(block + kHalfBytes, record + Record::kMins + row * kHalfBytes);
    ScatterQuants<kBlockElements / 2, 0>(block + 2 * kHalfBytes, quants);
  }
}

template <WeightType type>
void PackGroup(const WeightMatrix& from, size_t row0, uint8_t* to) {
  using Record = PackedRecord<type>;
  const size_t blocks = from.columns / kBlockElements;
  const size_t rows = from.rows - row0 < kGroupRows ? from.rows - row0 : kGroupRows;
  // All of a record's rows before the next record: it is written whole while the cache has it. Sixteen rows
  // at once are more streams than hardware follows.
  for (size_t b = 0; b < blocks; ++b) {
    uint8_t* record = to + b * Record::kBytes;
    if (rows < kGroupRows) std::memset(record, 0, Record::kBytes);
    const uint8_t* block = from.data + row0 * from.row_bytes + b * WeightBlockBytes(type);
    for (size_t r = 0; r < rows; ++r) {
      const uint8_t* of_row = block + r * from.row_bytes;
      __builtin_prefetch(of_row + kGroupRows * from.row_bytes);
      PackBlock<type>(of_row, r, record);
    }
  }
}

}  // namespace

size_t PackedMatrixBytes(const WeightMatrix& weights) {
  const size_t groups = (weights.rows + kGroupRows - 1) / kGroupRows;
  return groups * (weights.columns / WeightBlockElements(weights.type)) * PackedBlockBytes(weights.type);
}

void PackMatrix(const PackArgs& args, WorkShare share) {
  const WeightMatrix& from = args.from;
  const size_t group_bytes = from.columns / WeightBlockElements(from.type) * PackedBlockBytes(from.type);
  const WorkShare::Range rows = share.Of(from.rows, kGroupRows);
  for (size_t row = rows.begin; row < rows.end; row += kGroupRows) {
    uint8_t* to = args.to + row / kGroupRows * group_bytes;
    switch (from.type) {
      case WeightType::kQ8_0:
        PackGroup<WeightType::kQ8_0>(from, row, to);
        break;
      case WeightType::kQ4_0:
        PackGroup<WeightType::kQ4_0>(from, row, to);
        break;
      case WeightType::kQ4_1:
        PackGroup<WeightType::kQ4_1>(from, row, to);
        break;
      case WeightType::kQ5_0:
      case WeightType::kQ4_K:
      case WeightType::kQ5_K:
      case WeightType::kQ6_K:
        PackWideGroup(from, row, to);
        break;
      default:
        break;
    }
  }
}

}  // namespace millrace::kernels::cpu
