// PagedAttention: attention_tile.cuh says how, and in which order sums are taken.
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.h"

namespace millrace::kernels::cuda {
namespace attention {
namespace {

constexpr uint32_t kMostHeadSize = 256;
// Microbatches of so few rows have a block for each split, as there are too few blocks otherwise; the parts
// are merged afterwards.
constexpr size_t kSplitRows = 16;
constexpr uint32_t kMostSplitBlocks = 64;
// Adds a split to what there is of the splits before: kernels/paged_attention.h.
__device__ __forceinline__ void MergeFactors(Running& running, float most, float sum, float (&factors)[2]) {
  const float larger = Max(running.most, most);
  factors[0] = Exp(__fsub_rn(running.most, larger));
  factors[1] = Exp(__fsub_rn(most, larger));
  running.most = larger;
  running.sum = __fmaf_rn(running.sum, factors[0], __fmul_rn(sum, factors[1]));
}

// Writes the columns' values, times their factors: to `out` by head dim, or to their split's part.
template <int tiles, int dim_tiles>
__device__ __forceinline__ void WriteColumns(const Attention& args, const Columns& columns, int split,
                                             const float (&values)[dim_tiles][tiles][4],
                                             const Running (&running)[tiles][2]) {
  const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp = threadIdx.x / kWarp;
  const uint32_t size = args.shape.head_size;
  for (int c = 0; c < tiles; ++c) {
    for (int k = 0; k < 2; ++k) {
      const uint32_t column = c * kColumns + 2 * t + k;
      if (columns.OwnOf(column) < split * static_cast<int>(kSplit)) continue;
      const size_t head = size_t{columns.RowOf(column)} * args.heads + columns.HeadOf(column);
      float* to = args.out + head * size;
      float factor = 1;
      if (args.parts != nullptr) {
        to = args.parts + (head * args.splits + split) * (size + 2) + 2;
        if (warp == 0 && g == 0) {
          to[-2] = running[c][k].most;
          to[-1] = running[c][k].sum;
        }
      } else {
        factor = __fdiv_rn(1.0f, running[c][k].sum);
      }
      for (int j = 0; j < dim_tiles; ++j) {
        const uint32_t dim = (kWarps * j + warp) * kTile + g;
        if (dim >= size) continue;
        to[dim] = __fmul_rn(values[j][c][k], factor);
        to[dim + 8] = __fmul_rn(values[j][c][k + 2], factor);
      }
    }
  }
}

// Zeros for a row that belongs to nobody, of this block's heads.
__device__ __forceinline__ void WriteZeros(const Attention& args, uint32_t first_head, uint32_t width) {
  const uint32_t size = args.shape.head_size;
  float* out = args.out + (size_t{blockIdx.x} * args.heads + first_head) * size;
  for (uint32_t i = threadIdx.x; i < width * size; i += kThreads) out[i] = 0;
}

// One split of the block's columns: `running` becomes its maximum and sum.
template <bool bytes, int tiles, int dim_tiles>
__device__ __forceinline__ void AttendSplit(const Attention& args, const Columns& columns, uint32_t split,
                                            Shared<tiles>& shared, Running (&running)[tiles][2],
                                            float (&values)[dim_tiles][tiles][4]) {
  const uint32_t t = threadIdx.x % 4;
  const uint32_t begin = split * kSplit;
  {
    float scores[4][tiles][4];
    Score<bytes>(args, columns, begin, shared, scores);
    FindLargest<bytes>(args, columns, begin, shared, scores);
    __syncthreads();
    Weigh<bytes>(args, columns, begin, shared, scores);
  }
  __syncthreads();
  MultiplyValues<bytes>(args, columns, begin, shared, values);
  for (int c = 0; c < tiles; ++c) {
    for (int k = 0; k < 2; ++k) {
      const uint32_t column = c * kColumns + 2 * t + k;
      running[c][k].most = OverWarps(shared, 0, column, Largest());
      running[c][k].sum = OverWarps(shared, 2, column, Add());
      if constexpr (bytes) {
        const float up = NormalOf(OverWarps(shared, 1, column, Largest())).up;
        for (int j = 0; j < dim_tiles; ++j) {
          values[j][c][k] = __fmul_rn(values[j][c][k], up);
          values[j][c][k + 2] = __fmul_rn(values[j][c][k + 2], up);
        }
      }
    }
  }
  __syncthreads();
}

template <int tiles, int dim_tiles>
__device__ __forceinline__ void Merge(const Columns& columns, uint32_t split, const Running (&one)[tiles][2],
                                      const float (&one_values)[dim_tiles][tiles][4],
                                      Running (&running)[tiles][2], float (&values)[dim_tiles][tiles][4]) {
  const uint32_t t = threadIdx.x % 4;
  for (int c = 0; c < tiles; ++c) {
    for (int k = 0; k < 2; ++k) {
      if (columns.OwnOf(c * kColumns + 2 * t + k) < static_cast<int>(split * kSplit)) continue;
      float factors[2];
      MergeFactors(running[c][k], one[c][k].most, one[c][k].sum, factors);
      for (int j = 0; j < dim_tiles; ++j) {
        for (int half = 0; half < 4; half += 2) {
          float& value = values[j][c][k + half];
          value = __fmaf_rn(value, factors[0], __fmul_rn(one_values[j][c][k + half], factors[1]));
        }
      }
    }
  }
}

// Grid: row, KV head and chunk of its columns, split. The first row of each `tile_rows` of a segment has the
// columns of all of them; the blocks of the other rows have nothing to do.
template <bool bytes, int tiles, int dim_tiles>
__global__ void __launch_bounds__(kThreads, 1) AttentionKernel(Attention args) {
  Shared<tiles>& shared = *shared_memory<Shared<tiles>>();
  const uint32_t chunk = blockIdx.y % args.chunks;
  const uint32_t chunk_begin = chunk * Shared<tiles>::kCount;
  Columns columns;
  columns.row = blockIdx.x;
  columns.width = min(args.group - chunk_begin, Shared<tiles>::kCount);
  columns.first_head = blockIdx.y / args.chunks * args.group + chunk_begin;
  const uint32_t index = args.tables.row_segments[blockIdx.x];
  if (index == kNoSegment) {
    if (args.parts == nullptr) WriteZeros(args, columns.first_head, columns.width);
    return;
  }
  const SegmentWords segment = args.tables.segments[index];
  const uint32_t local = blockIdx.x - segment.first_row;
  if (local % args.tile_rows != 0) return;
  const uint32_t rows = min(args.tile_rows, segment.rows - local);
  columns.count = rows * columns.width;
  columns.position = segment.first_position + local;
  columns.last = columns.position + rows - 1;
  columns.blocks = args.tables.blocks + segment.first_block;
  if (blockIdx.z * kSplit > columns.last) return;
  LoadQueries(args, columns, shared);
  __syncthreads();
  Running running[tiles][2];
  float values[dim_tiles][tiles][4];
  if (args.parts != nullptr) {
    for (uint32_t split = blockIdx.z; split * kSplit <= columns.last; split += gridDim.z) {
      AttendSplit<bytes>(args, columns, split, shared, running, values);
      WriteColumns(args, columns, static_cast<int>(split), values, running);
    }
    return;
  }
  AttendSplit<bytes>(args, columns, 0, shared, running, values);
  for (uint32_t split = 1; split * kSplit <= columns.last; ++split) {
    Running one[tiles][2];
    float one_values[dim_tiles][tiles][4];
    AttendSplit<bytes>(args, columns, split, shared, one, one_values);
    Merge(columns, split, one, one_values, running, values);
  }
  WriteColumns(args, columns, 0, values, running);
}

// Grid: row, head. A thread for each head dim.
__global__ void __launch_bounds__(kThreads, 2) MergeKernel(Attention args) {
  const uint32_t size = args.shape.head_size;
  const size_t head = size_t{blockIdx.x} * args.heads + blockIdx.y;
  const bool nobody = args.tables.row_segments[blockIdx.x] == kNoSegment;
  const uint32_t splits = args.tables.positions[blockIdx.x] / kSplit + 1;
  const float* parts = args.parts + head * args.splits * (size + 2);
  for (uint32_t dim = threadIdx.x; dim < size; dim += kThreads) {
    if (nobody) {
      args.out[head * size + dim] = 0;
      continue;
    }
    Running running = {parts[0], parts[1]};
    float value = parts[2 + dim];
    for (uint32_t split = 1; split < splits; ++split) {
      const float* part = parts + split * (size + 2);
      float factors[2];
      MergeFactors(running, part[0], part[1], factors);
      value = __fmaf_rn(value, factors[0], __fmul_rn(part[2 + dim], factors[1]));
    }
    args.out[head * size + dim] = __fmul_rn(value, __fdiv_rn(1.0f, running.sum));
  }
}

template <bool bytes, int tiles, int dim_tiles>
void LaunchAttention(const CudaQueue& queue, Attention args, size_t rows) {
  constexpr uint32_t kCount = Shared<tiles>::kCount;
  args.chunks = (args.group + kCount - 1) / kCount;
  args.tile_rows = args.group < kCount ? kCount / args.group : 1;
  const uint32_t z = args.parts == nullptr ? 1 : min(args.splits, kMostSplitBlocks);
  const uint32_t kv_heads = args.shape.kv_heads;
  const size_t query_bytes = kCount * (args.shape.head_size + kPadding) * sizeof(__half);
  const LaunchShape shape{dim3(static_cast<unsigned>(rows), kv_heads * args.chunks, z), dim3(kThreads),
                          sizeof(Shared<tiles>) + query_bytes};
  queue.Check(Launch(AttentionKernel<bytes, tiles, dim_tiles>, shape, queue.stream(), args),
              "launch of PagedAttention");
  if (args.parts == nullptr) return;
  const LaunchShape merge{dim3(static_cast<unsigned>(rows), args.heads), dim3(kThreads)};
  queue.Check(Launch(MergeKernel, merge, queue.stream(), args), "launch of PagedAttention's merge");
}

// Few columns where there are few rows, so that the registers of a block are too.
template <bool bytes>
void LaunchSized(const CudaQueue& queue, const Attention& args, size_t rows) {
  const bool few = rows <= kSplitRows;
  if (args.shape.head_size <= 64) {
    return few ? LaunchAttention<bytes, 1, 1>(queue, args, rows)
               : LaunchAttention<bytes, 4, 1>(queue, args, rows);
  }
  if (args.shape.head_size <= 128) {
    return few ? LaunchAttention<bytes, 1, 2>(queue, args, rows)
               : LaunchAttention<bytes, 4, 2>(queue, args, rows);
  }
  few ? LaunchAttention<bytes, 1, 4>(queue, args, rows) : LaunchAttention<bytes, 2, 4>(queue, args, rows);
}

uint32_t SplitsOf(size_t context_tokens) {
  return static_cast<uint32_t>((context_tokens + kSplit - 1) / kSplit);
}

}  // namespace
}  // namespace attention

using namespace attention;

size_t AttentionScratch(const AttentionSizes& sizes) {
  const size_t splits = SplitsOf(sizes.context_tokens);
  if (splits <= 1) return 0;
  return min(sizes.max_rows, kSplitRows) * sizes.heads * splits * (sizes.head_size + 2);
}

void PagedAttention(const CudaQueue& queue, const PagedAttentionArgs& args) {
  if (args.kv.type == KvType::kF32) {
    return queue.Check(cudaErrorNotSupported, "attention over float32 (the KV type must be f16 or int8)");
  }
  if (args.kv.head_size % kTile != 0 || args.kv.head_size > kMostHeadSize) {
    return queue.Check(cudaErrorNotSupported,
                       "attention with heads that are not of 16, 32, ... 256 elements");
  }
  if (args.rows == 0) return;
  const auto& placed = *static_cast<const PlacedTables*>(args.tables);
  Attention attention{};
  attention.tables = placed.tables;
  attention.shape = {static_cast<uint32_t>(args.kv.block_tokens), static_cast<uint32_t>(args.kv.kv_heads),
                     static_cast<uint32_t>(args.kv.head_size)};
  attention.key_blocks = args.kv.key_blocks;
  attention.value_blocks = args.kv.value_blocks;
  attention.key_scales = args.kv.key_scales;
  attention.value_scales = args.kv.value_scales;
  attention.queries = args.queries;
  attention.out = args.out;
  attention.splits = SplitsOf(placed.context_tokens);
  if (args.rows <= kSplitRows && attention.splits > 1) attention.parts = args.scratch;
  attention.heads = static_cast<uint32_t>(args.heads);
  attention.group = static_cast<uint32_t>(args.heads / args.kv.kv_heads);
  attention.scale = args.scale;
  if (args.kv.type == KvType::kI8) {
    LaunchSized<true>(queue, attention, args.rows);
  } else {
    LaunchSized<false>(queue, attention, args.rows);
  }
}

}  // namespace millrace::kernels::cuda
