#include "kernels/cuda/batch_tables.h"

#include <cstring>
#include <new>

#include "kernels/cuda/cuda_ops.h"

namespace millrace::kernels::cuda {
namespace {

// PlacedTables, in front of the words that are copied.
constexpr size_t kHeaderBytes = 256;
static_assert(sizeof(PlacedTables) <= kHeaderBytes);

size_t FixedWords(size_t max_rows) {
  return 4 + max_rows * (2 + sizeof(SegmentWords) / sizeof(uint32_t));
}

size_t BlocksOf(size_t tokens, size_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

// Returns how many block ids there are.
size_t FillSegments(const PlaceBatchArgs& args, SegmentWords* segments, uint32_t* row_segments,
                    uint32_t* blocks) {
  size_t used = 0;
  for (size_t i = 0; i < args.segments.size(); ++i) {
    const KvSegment& from = args.segments[i];
    segments[i] = {static_cast<uint32_t>(from.first_row), static_cast<uint32_t>(from.rows),
                   from.first_position, static_cast<uint32_t>(used)};
    for (size_t row = 0; row < from.rows; ++row)
      row_segments[from.first_row + row] = static_cast<uint32_t>(i);
    const size_t count = BlocksOf(from.first_position + from.rows, args.block_tokens);
    std::memcpy(blocks + used, from.block_ids, count * sizeof(uint32_t));
    used += count;
  }
  return used;
}

}  // namespace

size_t BatchBytes(size_t max_rows, size_t context_tokens, size_t block_tokens) {
  const size_t words = FixedWords(max_rows) + max_rows * BlocksOf(context_tokens, block_tokens);
  return kHeaderBytes + words * sizeof(uint32_t);
}

BatchRows PlaceBatch(const CudaQueue& queue, const PlaceBatchArgs& args) {
  auto* const words = reinterpret_cast<uint32_t*>(args.staging + kHeaderBytes);
  auto* const device_words = reinterpret_cast<uint32_t*>(args.buffer);
  const size_t fixed = FixedWords(args.max_rows);
  uint32_t* const positions = words + 4;
  uint32_t* const row_segments = positions + args.max_rows;
  auto* const segments = reinterpret_cast<SegmentWords*>(row_segments + args.max_rows);
  size_t rows = 0;
  for (const KvSegment& segment : args.segments) rows += segment.rows;
  std::memset(words, 0, fixed * sizeof(uint32_t));
  words[0] = static_cast<uint32_t>(rows);
  words[1] = static_cast<uint32_t>(args.segments.size());
  std::memcpy(positions, args.positions, rows * sizeof(uint32_t));
  for (size_t row = rows; row < args.max_rows; ++row) row_segments[row] = kNoSegment;
  const size_t used = fixed + FillSegments(args, segments, row_segments, words + fixed);
  queue.Check(
      cudaMemcpyAsync(device_words, words, used * sizeof(uint32_t), cudaMemcpyHostToDevice, queue.stream()),
      "copy of a microbatch's tables");
  const auto* const placed = new (args.staging)
      PlacedTables{BatchTables::At(device_words, args.max_rows), static_cast<uint32_t>(args.context_tokens)};
  return {args.rows, placed->tables.positions, args.segments, placed};
}

}  // namespace millrace::kernels::cuda
