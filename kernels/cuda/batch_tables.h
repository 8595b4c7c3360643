// How the rows of a microbatch are described in device memory: 32-bit words, one buffer, one copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/batch.h"

#ifdef __CUDACC__
#define MILLRACE_HOST_DEVICE __host__ __device__
#else
#define MILLRACE_HOST_DEVICE
#endif

namespace millrace::kernels::cuda {

inline constexpr uint32_t kNoSegment = 0xffffffffu;

// One sequence's rows: row first_row + i is its position first_position + i; its block table begins at
// BatchTables.blocks[first_block].
struct SegmentWords {
  uint32_t first_row;
  uint32_t rows;
  uint32_t first_position;
  uint32_t first_block;
};

struct BatchTables {
  const uint32_t* counts;        // [4]: rows of segments, segments, 0, 0
  const uint32_t* positions;     // [max_rows]; 0 for rows that belong to nobody
  const uint32_t* row_segments;  // [max_rows]: index of the row's segment; kNoSegment
  const SegmentWords* segments;  // [max_rows]; rows 0 beyond their number
  const uint32_t* blocks;        // block ids of all segments

  // `words` is PlaceBatchArgs.buffer.
  MILLRACE_HOST_DEVICE static BatchTables At(const uint32_t* words, size_t max_rows) {
    BatchTables tables;
    tables.counts = words;
    tables.positions = words + 4;
    tables.row_segments = tables.positions + max_rows;
    tables.segments = reinterpret_cast<const SegmentWords*>(tables.row_segments + max_rows);
    tables.blocks = reinterpret_cast<const uint32_t*>(tables.segments + max_rows);
    return tables;
  }
};

// BatchRows.tables of this backend, in host memory; lies in front of what is copied, in
// PlaceBatchArgs.staging.
struct PlacedTables {
  BatchTables tables;       // device pointers, to pass to kernels
  uint32_t context_tokens;  // no position is beyond, in any batch
};

}  // namespace millrace::kernels::cuda
