#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul_int8.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/packed_fragments.cuh"

namespace millrace::kernels::cuda {
namespace {

using cpu::InputBlock;
using cpu::kGroupRows;
using cpu::kInputRows;

constexpr int kTokens = 8;                                // of one mma
constexpr int kInputsOfTile = kTokens / cpu::kInputRows;  // InputBlocks
constexpr int kMostProducts = 3;                          // of one launch

// One product of a launch.
struct Product {
  const uint8_t* weights;
  float* out;
  size_t out_stride;
  size_t partial_stride;
  uint32_t weight_rows;
  uint32_t first_group;  // of the launch
};

struct Products {
  const InputBlock* x;
  const InputBlock* refinements;
  uint32_t rows;
  uint32_t blocks;  // of 32 columns
  uint32_t segments;
  uint32_t ends[kMostSegments];  // of segments, in blocks
  MatMulStore store;
  uint32_t count;
  Product product[kMostProducts];
};

// Where the InputBlocks of a tile of tokens are: `at(i)` is that of tokens 4 i .. 4 i + 3.
struct InGlobal {
  const InputBlock* begin;  // of the tile's first, at the block of columns
  uint32_t stride;          // from one to the next
  uint32_t last;            // beyond it there is none: its values serve, and are not stored
  __device__ __forceinline__ const InputBlock* operator()(uint32_t i) const {
    return begin + size_t{i < last ? i : last} * stride;
  }
};

template <WeightType type>
__device__ __forceinline__ void BlockDots(const WeightBlock<type>& w, const uint32_t (&b)[2],
                                          const InputBlock* sums, int row0, int (&dots)[4]) {
  using Record = cpu::PackedRecord<type>;
  for (int& dot : dots) dot = 0;
  if constexpr (Record::kHasHalves) {
    const uint32_t first_half[4] = {w.a[0], w.a[1], 0, 0};
    const uint32_t second_half[4] = {0, 0, w.a[2], w.a[3]};
    int second[4] = {0, 0, 0, 0};
    mma_s8(dots, first_half, b);
    mma_s8(second, second_half, b);
    for (int i = 0; i < 4; ++i) {
      const int minus_first = sums->minus_first_sum[row0 + i % 2];
      const int minus_second = sums->minus_sum[row0 + i % 2] - minus_first;
      dots[i] = (dots[i] + minus_first * (1 << Record::kZeroBits)) * w.half[0][i / 2] +
                (second[i] + minus_second * (1 << Record::kZeroBits)) * w.half[1][i / 2];
    }
  } else {
    mma_s8(dots, w.a, b);
    // Eight bits are signed already.
    if constexpr (Record::kZeroBits >= 0 && type != WeightType::kQ8_0) {
      for (int i = 0; i < 4; ++i) dots[i] += sums->minus_sum[row0 + i % 2] * (1 << Record::kZeroBits);
    }
  }
}

// Adds a block to the sums of kTiles x 8 tokens; of those for which takes(i) is false nothing is added.
template <WeightType type, int kTiles, class At, class Takes>
__device__ __forceinline__ void AddBlock(const WeightBlock<type>& w, At at, Takes takes, unsigned lane,
                                         float (&sums)[kTiles][4]) {
  const unsigned token = lane / 4, step = lane % 4;
  const int row0 = static_cast<int>(2 * step % kInputRows);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const InputBlock* of_quants = at(n * kInputsOfTile + token / kInputRows);
    const auto* quants = reinterpret_cast<const uint32_t*>(of_quants->quants[token % kInputRows]);
    const uint32_t b[2] = {quants[step], quants[step + 4]};
    const uint32_t input = n * kInputsOfTile + 2 * step / kInputRows;
    const InputBlock* of_scales = at(input);
    int dots[4];
    BlockDots<type>(w, b, of_scales, row0, dots);
    if (!takes(input)) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float product = __fmul_rn(static_cast<float>(dots[i]), of_scales->scale[row0 + i % 2]);
      sums[n][i] = __fmaf_rn(product, w.scale[i / 2], sums[n][i]);
      if constexpr (cpu::PackedRecord<type>::kHasMin) {
        sums[n][i] = __fmaf_rn(w.min[i / 2], of_scales->scaled_sum[row0 + i % 2], sums[n][i]);
      }
    }
  }
}

// Block `block` of the columns of one group of weight rows, its refinement included. `x` gives the
// InputBlocks, `refinements` those of the same tokens and columns in global memory.
template <WeightType type, int kTiles, class At>
__device__ __forceinline__ void AddColumns(const uint8_t* group, uint32_t block, At x, InGlobal refinements,
                                           unsigned lane, float (&sums)[kTiles][4]) {
  using Layout = GroupLayout<type>;
  WeightBlock<type> w;
  w.Load(group + Layout::Header(block), group + Layout::Place(block), lane);
  AddBlock<type, kTiles>(
      w, x, [](uint32_t) { return true; }, lane, sums);
  if (!__any_sync(kAllLanes, x(lane % (kTiles * kInputsOfTile))->refined)) return;
  AddBlock<type, kTiles>(
      w, refinements, [&](uint32_t input) { return x(input)->refined; }, lane, sums);
}

__device__ __forceinline__ const Product& ProductOf(const Products& args, uint32_t group) {
  uint32_t i = 0;
  while (i + 1 < args.count && group >= args.product[i + 1].first_group) ++i;
  return args.product[i];
}

__device__ __forceinline__ InGlobal InputsFrom(const InputBlock* x, const Products& args, uint32_t token,
                                               uint32_t block) {
  const uint32_t input = token / kInputRows;
  const uint32_t inputs = (args.rows + kInputRows - 1) / kInputRows;
  return {x + size_t{input} * args.blocks + block, args.blocks, inputs - 1 - input};
}

constexpr int kFewWarps = 8;

// For as many tokens as the weights are read for anyway: warps of a block share 16 weight rows, each taking
// some of the segments.
template <WeightType type, int kTiles>
__global__ void __launch_bounds__(kFewWarps* kWarp, 2) FewTokens(const Products args) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  constexpr int kColumns = kTiles * kTokens;
  const Product& product = ProductOf(args, blockIdx.x);
  const uint32_t group = blockIdx.x - product.first_group;
  const uint32_t token0 = blockIdx.y * kColumns;
  const uint8_t* weights = product.weights + size_t{group} * GroupLayout<type>::Bytes(args.blocks);
  float* results = shared_memory<float>();  // [segments][kColumns][kGroupRows]
  for (uint32_t s = warp; s < args.segments; s += kFewWarps) {
    float sums[kTiles][4] = {};
#pragma unroll 4
    for (uint32_t b = s == 0 ? 0 : args.ends[s - 1]; b < args.ends[s]; ++b) {
      AddColumns<type, kTiles>(weights, b, InputsFrom(args.x, args, token0, b),
                               InputsFrom(args.refinements, args, token0, b), lane, sums);
    }
    for (int n = 0; n < kTiles; ++n) {
      for (int i = 0; i < 4; ++i) {
        const unsigned column = n * kTokens + 2 * (lane % 4) + i % 2, row = lane / 4 + 8 * (i / 2);
        results[(s * kColumns + column) * kGroupRows + row] = sums[n][i];
      }
    }
  }
  __syncthreads();
  for (unsigned e = threadIdx.x; e < kColumns * kGroupRows; e += kFewWarps * kWarp) {
    const uint32_t token = token0 + e / kGroupRows;
    const uint32_t row = group * kGroupRows + e % kGroupRows;
    if (token >= args.rows || row >= product.weight_rows) continue;
    float* out = product.out + token * product.out_stride + row;
    float sum = args.store == MatMulStore::kAdd ? *out : 0;
    for (uint32_t s = 0; s < args.segments; ++s) {
      const float segment = results[s * kColumns * kGroupRows + e];
      if (args.store == MatMulStore::kPartials) {
        out[s * product.partial_stride] = segment;
      } else {
        sum = s == 0 && args.store == MatMulStore::kReplace ? segment : __fadd_rn(sum, segment);
      }
    }
    if (args.store != MatMulStore::kPartials) *out = sum;
  }
}

constexpr int kManyWarps = 4;
constexpr int kManyTiles = 8;
constexpr int kManyInputs = kManyTiles * kInputsOfTile;
constexpr int kStageBlocks = 4;
constexpr int kStages = 2;

// InputBlocks in shared memory: [kManyInputs][kStageBlocks].
struct InShared {
  const InputBlock* begin;
  __device__ __forceinline__ const InputBlock* operator()(uint32_t i) const {
    return begin + i * kStageBlocks;
  }
};

// Starts copying the inputs of blocks `block` and on.
__device__ __forceinline__ void CopyStage(const Products& args, uint32_t token0, uint32_t block,
                                          InputBlock* to) {
  constexpr uint32_t kPieces = sizeof(InputBlock) / 16;
  const InGlobal from = InputsFrom(args.x, args, token0, block);
  for (uint32_t i = threadIdx.x; i < kManyInputs * kStageBlocks * kPieces; i += kManyWarps * kWarp) {
    const uint32_t piece = i % kPieces, b = i / kPieces % kStageBlocks, input = i / kPieces / kStageBlocks;
    if (block + b >= args.blocks) continue;
    cp_async_16(reinterpret_cast<uint8_t*>(to + input * kStageBlocks + b) + 16 * piece,
                reinterpret_cast<const uint8_t*>(from(input) + b) + 16 * piece, true);
  }
  cp_async_commit();
}

// What became of a segment: kPartials, or the running total.
__device__ __forceinline__ void EndSegment(const Products& args, const Product& product, uint32_t s,
                                           uint32_t token0, uint32_t row0, float (&sums)[kManyTiles][4],
                                           float (&totals)[kManyTiles][4]) {
  const unsigned lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < kManyTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t token = token0 + n * kTokens + 2 * (lane % 4) + i % 2;
      const uint32_t row = row0 + lane / 4 + 8 * (i / 2);
      const bool valid = token < args.rows && row < product.weight_rows;
      float* out = product.out + token * product.out_stride + row;
      if (args.store == MatMulStore::kPartials) {
        if (valid) out[s * product.partial_stride] = sums[n][i];
      } else {
        if (s == 0 && args.store == MatMulStore::kAdd) totals[n][i] = valid ? *out : 0;
        totals[n][i] =
            s == 0 && args.store == MatMulStore::kReplace ? sums[n][i] : __fadd_rn(totals[n][i], sums[n][i]);
        if (s + 1 == args.segments && valid) *out = totals[n][i];
      }
      sums[n][i] = 0;
    }
  }
}

// For many tokens: each warp takes 16 weight rows, all warps of a block the same 64 tokens, which shared
// memory brings to them.
template <WeightType type>
__global__ void __launch_bounds__(kManyWarps* kWarp, 2) ManyTokens(const Products args) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  InputBlock* stages = shared_memory<InputBlock>();  // [kStages][kManyInputs][kStageBlocks]
  const Product& product = args.product[0];
  const uint32_t groups = (product.weight_rows + kGroupRows - 1) / kGroupRows;
  const uint32_t group = blockIdx.x * kManyWarps + warp;
  const uint32_t token0 = blockIdx.y * kManyTiles * kTokens;
  // A warp without rows of its own helps to copy, and computes what nobody stores.
  const uint8_t* weights =
      product.weights + size_t{group < groups ? group : groups - 1} * GroupLayout<type>::Bytes(args.blocks);
  float sums[kManyTiles][4] = {};
  float totals[kManyTiles][4] = {};
  uint32_t segment = 0;
  constexpr uint32_t kStageInputs = kManyInputs * kStageBlocks;
  CopyStage(args, token0, 0, stages);
  for (uint32_t b = 0; b < args.blocks; ++b) {
    const uint32_t stage = b / kStageBlocks % kStages;
    if (b % kStageBlocks == 0) {
      __syncthreads();  // all are done with the stage that is copied to next
      CopyStage(args, token0, b + kStageBlocks, stages + (stage + 1) % kStages * kStageInputs);
      cp_async_wait<kStages - 1>();
      __syncthreads();
    }
    AddColumns<type, kManyTiles>(weights, b, InShared{stages + stage * kStageInputs + b % kStageBlocks},
                                 InputsFrom(args.refinements, args, token0, b), lane, sums);
    if (b + 1 == args.ends[segment]) {
      EndSegment(args, product, segment, token0, group * kGroupRows, sums, totals);
      ++segment;
    }
  }
}

// As many tiles of tokens as the kernel for few takes.
constexpr size_t kFewTiles = 2;
constexpr size_t kFew = kFewTiles * kTokens;

template <WeightType type>
void LaunchOf(const CudaQueue& queue, Products& args, uint32_t groups) {
  if (args.rows <= kFew) {
    const size_t columns = args.rows <= kTokens ? kTokens : kFew;
    const LaunchShape shape{dim3(groups), dim3(kFewWarps * kWarp),
                            args.segments * columns * kGroupRows * sizeof(float)};
    queue.Check(args.rows <= kTokens ? Launch(FewTokens<type, 1>, shape, queue.stream(), args)
                                     : Launch(FewTokens<type, kFewTiles>, shape, queue.stream(), args),
                "launch of a product with few rows");
    return;
  }
  const Products all = args;
  args.count = 1;
  for (uint32_t i = 0; i < all.count; ++i) {
    args.product[0] = all.product[i];
    const uint32_t own = (all.product[i].weight_rows + kGroupRows - 1) / kGroupRows;
    const LaunchShape shape{dim3((own + kManyWarps - 1) / kManyWarps,
                                 (args.rows + kManyTiles * kTokens - 1) / (kManyTiles * kTokens)),
                            dim3(kManyWarps * kWarp),
                            kStages * kManyInputs * kStageBlocks * sizeof(InputBlock)};
    queue.Check(Launch(ManyTokens<type>, shape, queue.stream(), args), "launch of a product with many rows");
  }
}

void LaunchProducts(const CudaQueue& queue, WeightType type, Products& args, uint32_t groups) {
  switch (type) {
    case WeightType::kQ8_0:
      return LaunchOf<WeightType::kQ8_0>(queue, args, groups);
    case WeightType::kQ4_0:
      return LaunchOf<WeightType::kQ4_0>(queue, args, groups);
    case WeightType::kQ4_1:
      return LaunchOf<WeightType::kQ4_1>(queue, args, groups);
    case WeightType::kQ5_0:
      return LaunchOf<WeightType::kQ5_0>(queue, args, groups);
    case WeightType::kQ4_K:
      return LaunchOf<WeightType::kQ4_K>(queue, args, groups);
    case WeightType::kQ5_K:
      return LaunchOf<WeightType::kQ5_K>(queue, args, groups);
    case WeightType::kQ6_K:
      return LaunchOf<WeightType::kQ6_K>(queue, args, groups);
    default:
      return queue.Check(cudaErrorInvalidValue, "product with weights of another type");
  }
}

Products Describe(const MatMulArgs& first) {
  Products args = {};
  args.x = static_cast<const InputBlock*>(first.x.quantized);
  args.refinements = args.x + cpu::InputBlocks(first.x.rows, first.x.columns);
  args.rows = static_cast<uint32_t>(first.x.rows);
  args.blocks = static_cast<uint32_t>(first.x.columns / kBlockElements);
  args.store = first.store;
  const ColumnCut cut = CutColumns(first.x.columns);
  const absl::Span<const uint32_t> ends =
      first.segment_ends.empty() ? absl::Span<const uint32_t>(cut.ends, cut.count) : first.segment_ends;
  args.segments = static_cast<uint32_t>(ends.size());
  for (size_t i = 0; i < ends.size(); ++i) args.ends[i] = ends[i] / static_cast<uint32_t>(kBlockElements);
  return args;
}

// Whether one launch serves both.
bool Alike(const MatMulArgs& a, const MatMulArgs& b) {
  return a.weights.type == b.weights.type && a.store == b.store && a.segment_ends == b.segment_ends;
}

}  // namespace

ColumnCut CutColumns(size_t columns) {
  constexpr size_t kSegments = 8;
  // Whole blocks of any type.
  const size_t unit = columns % kSuperBlockElements == 0 ? kSuperBlockElements : kBlockElements;
  const size_t units = columns / unit;
  ColumnCut cut = {};
  cut.count = std::min(kSegments, units);
  for (size_t i = 0; i < cut.count; ++i) {
    cut.ends[i] = static_cast<uint32_t>(units * (i + 1) / cut.count * unit);
  }
  return cut;
}

void MatMulInt8(const CudaQueue& queue, absl::Span<const MatMulArgs> products) {
  for (size_t begin = 0; begin < products.size();) {
    const MatMulArgs& first = products[begin];
    if (first.segment_ends.size() > kMostSegments) {
      return queue.Check(cudaErrorInvalidValue, "product with too many segments");
    }
    Products args = Describe(first);
    uint32_t groups = 0;
    for (; args.count < kMostProducts && begin < products.size() && Alike(first, products[begin]); ++begin) {
      const MatMulArgs& product = products[begin];
      const size_t stride = product.out_stride == 0 ? product.weights.rows : product.out_stride;
      args.product[args.count++] = {product.weights.data,
                                    product.out,
                                    stride,
                                    product.partial_stride,
                                    static_cast<uint32_t>(product.weights.rows),
                                    groups};
      groups += static_cast<uint32_t>((product.weights.rows + kGroupRows - 1) / kGroupRows);
    }
    LaunchProducts(queue, first.weights.type, args, groups);
  }
}

}  // namespace millrace::kernels::cuda
