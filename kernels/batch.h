// The rows of a microbatch, made known to a backend once for all ops that need positions or block tables.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace millrace::kernels {

// The rows of a microbatch that belong to one sequence: row first_row + i is its position first_position + i.
struct KvSegment {
  const uint32_t* block_ids = nullptr;  // the sequence's block table, in host memory
  uint32_t first_position = 0;
  size_t first_row = 0;
  size_t rows = 0;  // at least 1
};

struct PlaceBatchArgs {
  absl::Span<const KvSegment> segments;  // in host memory, until the microbatch is done; rows without gaps
  const uint32_t* positions = nullptr;   // [rows of all segments], in host memory
  // Rows that ops are called with: those of the segments, then rows that belong to nobody and whose results
  // nobody reads, so that one captured sequence of ops serves every number of rows up to it.
  size_t rows = 0;
  size_t max_rows = 0;  // capacity, of rows and of segments, that both buffers were made for
  size_t block_tokens = 0;
  size_t context_tokens = 0;   // capacity likewise, of each sequence
  uint8_t* buffer = nullptr;   // Backend::BatchBytes bytes of the backend's memory
  uint8_t* staging = nullptr;  // as many of host memory that copies are made from; untouched until they are
};

// What ops take. Points to what PlaceBatch was given.
struct BatchRows {
  size_t rows = 0;                       // as PlaceBatchArgs.rows
  const uint32_t* positions = nullptr;   // [rows], in the backend's memory
  absl::Span<const KvSegment> segments;  // in host memory
  const void* tables = nullptr;          // the same in a layout of the backend; null: it needs none
};

}  // namespace millrace::kernels
