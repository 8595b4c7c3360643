#include <cstring>
#include <vector>

#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul_float.cuh"
#include "kernels/cuda/matmul_float.h"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr uint32_t kTileRows = 16;   // of weights, of one mma
constexpr uint32_t kTileTokens = 8;  // of one mma

// The activations as the weights' type, segments filled up with zeros. A block a row.
template <WeightType type>
__global__ void __launch_bounds__(kThreads, 2)
    RoundKernel(const float* x, uint32_t columns, FloatSegments all, uint16_t* rounded) {
  const float* row = x + size_t{blockIdx.x} * columns;
  uint16_t* to = rounded + size_t{blockIdx.x} * all.padded_columns;
  for (uint32_t s = 0; s < all.count; ++s) {
    const FloatSegment segment = all.segments[s];
    const uint32_t behind = s + 1 < all.count ? all.segments[s + 1].padded_begin : all.padded_columns;
    const uint32_t length = segment.end - segment.begin;
    const uint32_t loads = (behind - segment.padded_begin) / kFloatLoad;
    for (uint32_t load = threadIdx.x; load < loads; load += kThreads) {
      uint32_t words[kFloatLoad / 2];
#pragma unroll
      for (uint32_t i = 0; i < kFloatLoad; ++i) {
        const uint32_t at = load * kFloatLoad + i;
        const uint32_t bits = Float16<type>::Round(at < length ? row[segment.begin + at] : 0.0f);
        words[i / 2] = i % 2 == 0 ? bits : words[i / 2] | bits << 16;
      }
      *reinterpret_cast<uint4*>(to + segment.padded_begin + load * kFloatLoad) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

__device__ __forceinline__ uint32_t ChunksOf(const FloatSegment& segment) {
  return (segment.end - segment.begin + kFloatChunk - 1) / kFloatChunk;
}

// The sums of one chunk of a warp's 16 rows of weights and kTiles * 8 tokens.
template <WeightType type, int kTiles, bool kAligned>
__device__ __forceinline__ void MultiplyChunk(const FloatProduct& product, const WeightRows& rows,
                                              uint32_t chunk, float (&sums)[kTiles][4]) {
  uint32_t s = 0;
  while (chunk >= ChunksOf(product.segments.segments[s])) chunk -= ChunksOf(product.segments.segments[s++]);
  const FloatSegment segment = product.segments.segments[s];
  const uint32_t begin = segment.begin + chunk * kFloatChunk;
  const uint32_t end = segment.end - begin < kFloatChunk ? segment.end : begin + kFloatChunk;
  const uint32_t group = threadIdx.x % kWarp / 4;
  const uint16_t* x = product.x + segment.padded_begin + chunk * kFloatChunk + kFloatLoad * (threadIdx.x % 4);
  constexpr uint32_t kAhead = 4;  // steps of weights on their way at once
  for (uint32_t column = begin; column < end; column += kAhead * kFloatStep) {
    WeightStep weights[kAhead];
#pragma unroll
    for (uint32_t i = 0; i < kAhead; ++i) weights[i] = rows.Load<kAligned>(column + i * kFloatStep, end);
#pragma unroll
    for (uint32_t i = 0; i < kAhead; ++i) {
      if (column + i * kFloatStep >= end) break;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint32_t token = tile * kTileTokens + group;
        uint4 values = make_uint4(0, 0, 0, 0);
        if (token < product.rows) {
          values = *reinterpret_cast<const uint4*>(x + size_t{token} * product.segments.padded_columns +
                                                   column - begin + i * kFloatStep);
        }
        MultiplyStep<type>(sums[tile], weights[i], values);
      }
    }
  }
}

// One output's way through the chunks and segments, in rising order.
struct Fold {
  float sum = 0;    // of the segment so far
  float total = 0;  // of the segments so far
  uint32_t segment = 0;
  uint32_t chunk = 0;  // of the segment

  __device__ __forceinline__ void Add(const FloatProduct& product, float value, float* out) {
    sum = chunk == 0 ? value : __fadd_rn(sum, value);
    if (++chunk < ChunksOf(product.segments.segments[segment])) return;
    if (product.store == MatMulStore::kPartials) {
      if (out != nullptr) out[segment * product.partial_stride] = sum;
    } else {
      total = segment == 0 && product.store == MatMulStore::kReplace ? sum : __fadd_rn(total, sum);
    }
    chunk = 0;
    ++segment;
  }
};

// Few tokens: a block has 16 rows of weights, its warps a chunk each at a time.
template <WeightType type, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kThreads, 2) FewRowsKernel(FloatProduct product) {
  constexpr int kOutputs = kTiles * 4 * kWarp;
  constexpr int kFolds = (kOutputs + kThreads - 1) / kThreads;
  float* shared = shared_memory<float>();  // [kWarps][kOutputs]
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t first_row = blockIdx.x * kTileRows;
  const WeightRows rows(product, first_row);
  Fold folds[kFolds];
  float* outs[kFolds];
#pragma unroll
  for (int f = 0; f < kFolds; ++f) {
    const uint32_t i = (threadIdx.x + f * kThreads) / kWarp;  // 4 * tile + register
    const uint32_t row = first_row + lane / 4 + 8 * (i % 4 / 2);
    const uint32_t token = i / 4 * kTileTokens + 2 * (lane % 4) + i % 2;
    const bool mine = i < 4 * kTiles && row < product.n && token < product.rows;
    outs[f] = mine ? product.out + token * product.out_stride + row : nullptr;
    if (mine && product.store == MatMulStore::kAdd) folds[f].total = *outs[f];
  }
  uint32_t chunks = 0;
  for (uint32_t s = 0; s < product.segments.count; ++s) chunks += ChunksOf(product.segments.segments[s]);
  for (uint32_t begin = 0; begin < chunks; begin += kWarps) {
    if (begin + warp < chunks) {
      float sums[kTiles][4] = {};
      MultiplyChunk<type, kTiles, kAligned>(product, rows, begin + warp, sums);
#pragma unroll
      for (int i = 0; i < 4 * kTiles; ++i) shared[warp * kOutputs + i * kWarp + lane] = sums[i / 4][i % 4];
    }
    __syncthreads();
#pragma unroll
    for (int f = 0; f < kFolds; ++f) {
      const uint32_t output = threadIdx.x + f * kThreads;
      if (output >= kOutputs) continue;
      for (uint32_t w = 0; w < kWarps && begin + w < chunks; ++w) {
        folds[f].Add(product, shared[w * kOutputs + output], outs[f]);
      }
    }
    __syncthreads();
  }
  if (product.store == MatMulStore::kPartials) return;
#pragma unroll
  for (int f = 0; f < kFolds; ++f) {
    if (outs[f] != nullptr) *outs[f] = folds[f].total;
  }
}

// Many tokens: a block has a tile of 128 rows of weights, 16 to a warp, and 64 tokens, which go through
// shared memory, a few steps ahead.
constexpr int kBlockTiles = 8;
constexpr uint32_t kBlockRows = kWarps * kTileRows;
constexpr uint32_t kBlockTokens = kBlockTiles * kTileTokens;
constexpr uint32_t kStages = 4;
constexpr uint32_t kStageElements = kBlockTokens * kFloatStep;

// One thread's 16 bytes of a step of the tokens.
__device__ __forceinline__ void FetchTokens(const FloatProduct& product, uint32_t step, uint32_t steps,
                                            uint16_t* stages) {
  const uint32_t token = threadIdx.x / 4;
  const uint32_t at = kFloatLoad * (threadIdx.x % 4);
  const uint32_t row = blockIdx.y * kBlockTokens + token;
  if (step < steps) {
    const bool valid = row < product.rows;
    const size_t offset =
        (valid ? row : 0) * size_t{product.segments.padded_columns} + step * kFloatStep + at;
    cp_async_16(stages + step % kStages * kStageElements + token * kFloatStep + at, product.x + offset,
                valid);
  }
  cp_async_commit();
}

__device__ __forceinline__ void StoreSegment(const FloatProduct& product, uint32_t segment,
                                             const float (&sums)[kBlockTiles][4]) {
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t row = blockIdx.x * kBlockRows + threadIdx.x / kWarp * kTileRows + lane / 4;
  const uint32_t token = blockIdx.y * kBlockTokens + 2 * (lane % 4);
  const bool partials = product.store == MatMulStore::kPartials;
  const bool add = product.store == MatMulStore::kAdd || (!partials && segment > 0);
  float* out = product.out + (partials ? segment * product.partial_stride : 0);
#pragma unroll
  for (int i = 0; i < 4 * kBlockTiles; ++i) {
    const uint32_t n = row + 8 * (i % 4 / 2);
    const uint32_t r = token + i / 4 * kTileTokens + i % 2;
    if (n >= product.n || r >= product.rows) continue;
    float* at = out + r * product.out_stride + n;
    *at = add ? __fadd_rn(*at, sums[i / 4][i % 4]) : sums[i / 4][i % 4];
  }
}

template <WeightType type, bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) ManyRowsKernel(FloatProduct product) {
  uint16_t* stages = shared_memory<uint16_t>();  // [kStages][kBlockTokens][kFloatStep]
  const uint32_t lane = threadIdx.x % kWarp;
  const WeightRows rows(product, blockIdx.x * kBlockRows + threadIdx.x / kWarp * kTileRows);
  const uint32_t steps = product.segments.padded_columns / kFloatStep;
  for (uint32_t step = 0; step + 1 < kStages; ++step) FetchTokens(product, step, steps, stages);
  uint32_t step = 0;
  for (uint32_t s = 0; s < product.segments.count; ++s) {
    const FloatSegment segment = product.segments.segments[s];
    float sums[kBlockTiles][4];
    float chunk[kBlockTiles][4] = {};
    WeightStep next = rows.Load<kAligned>(segment.begin, segment.end);
    for (uint32_t column = segment.begin; column < segment.end; column += kFloatStep, ++step) {
      cp_async_wait<kStages - 2>();
      __syncthreads();
      FetchTokens(product, step + kStages - 1, steps, stages);
      const WeightStep weights = next;
      next = rows.Load<kAligned>(column + kFloatStep, segment.end);
      const uint16_t* x = stages + step % kStages * kStageElements + kFloatLoad * lane;
#pragma unroll
      for (int tile = 0; tile < kBlockTiles; ++tile) {
        const uint4 values = *reinterpret_cast<const uint4*>(x + tile * kTileTokens * kFloatStep);
        MultiplyStep<type>(chunk[tile], weights, values);
      }
      const uint32_t done = column + kFloatStep - segment.begin;
      if (done % kFloatChunk != 0 && column + kFloatStep < segment.end) continue;
#pragma unroll
      for (int i = 0; i < 4 * kBlockTiles; ++i) {
        float& sum = sums[i / 4][i % 4];
        sum = done <= kFloatChunk ? chunk[i / 4][i % 4] : __fadd_rn(sum, chunk[i / 4][i % 4]);
        chunk[i / 4][i % 4] = 0;
      }
    }
    StoreSegment(product, s, sums);
  }
}

// F32: half a warp has a row of weights, and kF32Tokens tokens.
constexpr uint32_t kF32Tokens = 4;

struct F32Product {
  const uint8_t* weights;
  size_t row_bytes;
  const float* x;
  uint32_t rows;
  uint32_t columns;
  uint32_t n;
  float* out;
  size_t out_stride;
  size_t partial_stride;
  MatMulStore store;
  FloatSegments segments;
};

__global__ void __launch_bounds__(kThreads, 2) F32Kernel(F32Product product) {
  const uint32_t lane = threadIdx.x % kSumLanes;
  const uint32_t n = (blockIdx.x * kThreads + threadIdx.x) / kSumLanes;
  const uint32_t token = blockIdx.y * kF32Tokens;
  const uint32_t last = product.n - 1;
  const float* weights =
      reinterpret_cast<const float*>(product.weights + (n < last ? n : last) * product.row_bytes);
  for (uint32_t s = 0; s < product.segments.count; ++s) {
    const FloatSegment segment = product.segments.segments[s];
    float sums[kF32Tokens] = {};
    // A last step that is not whole counts the missing columns as 0, as the CPU does.
    for (uint32_t step = segment.begin; step < segment.end; step += kSumLanes) {
      const uint32_t column = step + lane;
      const bool in = column < segment.end;
      const float w = in ? weights[column] : 0.0f;
#pragma unroll
      for (uint32_t i = 0; i < kF32Tokens; ++i) {
        const size_t row = token + i < product.rows ? token + i : 0;
        const float x = in ? product.x[row * product.columns + column] : 0.0f;
        sums[i] = __fmaf_rn(x, w, sums[i]);
      }
    }
    const bool partials = product.store == MatMulStore::kPartials;
    const bool add = product.store == MatMulStore::kAdd || (!partials && s > 0);
#pragma unroll
    for (uint32_t i = 0; i < kF32Tokens; ++i) {
      const float sum = AddSumLanes(sums[i]);
      if (lane != 0 || n >= product.n || token + i >= product.rows) continue;
      float* out = product.out + (partials ? s * product.partial_stride : 0);
      out += (token + i) * product.out_stride + n;
      *out = add ? __fadd_rn(*out, sum) : sum;
    }
  }
}

size_t PackedRowBytes(const WeightMatrix& weights) {
  constexpr size_t kAlignment = sizeof(uint4);
  const size_t bytes = weights.columns * WeightBlockBytes(weights.type);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

unsigned Tiles(size_t count, size_t tile) {
  return static_cast<unsigned>((count + tile - 1) / tile);
}

// The part of a product that one launch does.
struct Part {
  FloatSegments segments{};
  MatMulStore store = MatMulStore::kReplace;
  float* out = nullptr;
};

Part MakePart(const MatMulArgs& args, size_t first) {
  Part part;
  const size_t all = args.segment_ends.empty() ? 1 : args.segment_ends.size();
  const auto end = [&](size_t i) {
    return args.segment_ends.empty() ? static_cast<uint32_t>(args.weights.columns) : args.segment_ends[i];
  };
  for (size_t i = first; i < all && part.segments.count < kSegmentsPerLaunch; ++i) {
    FloatSegment& segment = part.segments.segments[part.segments.count++];
    segment = {i == 0 ? 0 : end(i - 1), end(i), part.segments.padded_columns};
    part.segments.padded_columns += Tiles(segment.end - segment.begin, kFloatStep) * kFloatStep;
  }
  const bool partials = args.store == MatMulStore::kPartials;
  part.store = !partials && first > 0 ? MatMulStore::kAdd : args.store;
  part.out = args.out + (partials ? first * args.partial_stride : 0);
  return part;
}

template <WeightType type, int kTiles, bool kAligned>
void FewRows(const CudaQueue& queue, const FloatProduct& product) {
  const LaunchShape shape{dim3(Tiles(product.n, kTileRows)), dim3(kThreads),
                          kWarps * kTiles * 4 * kWarp * sizeof(float)};
  queue.Check(Launch(FewRowsKernel<type, kTiles, kAligned>, shape, queue.stream(), product),
              "launch of a product of few rows with 16-bit weights");
}

template <WeightType type, bool kAligned>
void Multiply(const CudaQueue& queue, const FloatProduct& product) {
  if (product.rows <= kTileTokens) return FewRows<type, 1, kAligned>(queue, product);
  if (product.rows <= 2 * kTileTokens) return FewRows<type, 2, kAligned>(queue, product);
  if (product.rows <= kFewFloatRows) return FewRows<type, 4, kAligned>(queue, product);
  const LaunchShape shape{dim3(Tiles(product.n, kBlockRows), Tiles(product.rows, kBlockTokens)),
                          dim3(kThreads), kStages * kStageElements * sizeof(uint16_t)};
  queue.Check(Launch(ManyRowsKernel<type, kAligned>, shape, queue.stream(), product),
              "launch of a product of many rows with 16-bit weights");
}

size_t RowBytes(const WeightMatrix& weights) {
  return weights.packed ? PackedRowBytes(weights) : weights.row_bytes;
}

size_t OutStride(const MatMulArgs& args) {
  return args.out_stride == 0 ? args.weights.rows : args.out_stride;
}

CublasProduct CublasWeights(const WeightMatrix& packed) {
  CublasProduct product;
  product.weights = packed.data;
  product.row_bytes = PackedRowBytes(packed);
  product.type = packed.type;
  product.n = packed.rows;
  product.k = packed.columns;
  return product;
}

template <WeightType type>
void MatMul16(const CudaQueue& queue, const MatMulArgs& args, const Part& part) {
  uint16_t* rounded = reinterpret_cast<uint16_t*>(args.scratch);
  queue.Check(Launch(RoundKernel<type>, {dim3(static_cast<unsigned>(args.x.rows)), dim3(kThreads)},
                     queue.stream(), args.x.x, static_cast<uint32_t>(args.x.columns), part.segments, rounded),
              "launch of rounding to 16 bits");
  // Sums of several segments stay with our kernel, so that it does not matter which shard has which.
  if (queue.cublas() != nullptr && args.weights.packed && args.segment_ends.size() <= 1 &&
      args.store == MatMulStore::kReplace) {
    CublasProduct product = CublasWeights(args.weights);
    product.x = rounded;
    product.x_stride = part.segments.padded_columns;
    product.rows = args.x.rows;
    product.out = args.out;
    product.out_stride = OutStride(args);
    if (queue.cublas()->Serves(product)) return queue.cublas()->Multiply(queue, product);
  }
  const FloatProduct product{args.weights.data,
                             RowBytes(args.weights),
                             rounded,
                             static_cast<uint32_t>(args.x.rows),
                             static_cast<uint32_t>(args.weights.rows),
                             part.out,
                             OutStride(args),
                             args.partial_stride,
                             part.store,
                             part.segments};
  bool aligned = product.row_bytes % sizeof(uint4) == 0 &&
                 reinterpret_cast<uintptr_t>(product.weights) % sizeof(uint4) == 0;
  for (uint32_t s = 0; s < part.segments.count; ++s) {
    aligned = aligned && part.segments.segments[s].begin % kFloatLoad == 0;
  }
  aligned ? Multiply<type, true>(queue, product) : Multiply<type, false>(queue, product);
}

void MatMulF32(const CudaQueue& queue, const MatMulArgs& args, const Part& part) {
  const F32Product product{args.weights.data,
                           RowBytes(args.weights),
                           args.x.x,
                           static_cast<uint32_t>(args.x.rows),
                           static_cast<uint32_t>(args.x.columns),
                           static_cast<uint32_t>(args.weights.rows),
                           part.out,
                           OutStride(args),
                           args.partial_stride,
                           part.store,
                           part.segments};
  const LaunchShape shape{dim3(Tiles(product.n, kThreads / kSumLanes), Tiles(product.rows, kF32Tokens)),
                          dim3(kThreads)};
  queue.Check(Launch(F32Kernel, shape, queue.stream(), product), "launch of a product with F32 weights");
}

}  // namespace

bool IsFloatType(WeightType type) {
  return type == WeightType::kF32 || type == WeightType::kF16 || type == WeightType::kBF16;
}

size_t PackedBytesFloat(const WeightMatrix& weights) {
  return weights.rows * PackedRowBytes(weights);
}

WeightMatrix PackFloat(const CudaQueue& queue, const WeightMatrix& weights, uint8_t* to) {
  const size_t row_bytes = PackedRowBytes(weights);
  const size_t bytes = weights.columns * WeightBlockBytes(weights.type);
  // Through a few rows of host memory, so that device memory is written in few copies whatever the strides.
  constexpr size_t kStagingBytes = size_t{8} << 20;
  const size_t rows_at_once =
      row_bytes < kStagingBytes ? kStagingBytes / (row_bytes == 0 ? 1 : row_bytes) : 1;
  std::vector<uint8_t> staging((rows_at_once < weights.rows ? rows_at_once : weights.rows) * row_bytes);
  for (size_t begin = 0; begin < weights.rows; begin += rows_at_once) {
    const size_t count = weights.rows - begin < rows_at_once ? weights.rows - begin : rows_at_once;
    for (size_t r = 0; r < count; ++r) {
      std::memcpy(staging.data() + r * row_bytes, weights.data + (begin + r) * weights.row_bytes, bytes);
    }
    queue.Check(cudaMemcpyAsync(to + begin * row_bytes, staging.data(), count * row_bytes,
                                cudaMemcpyHostToDevice, queue.stream()),
                "copy of weights");
    queue.Check(cudaStreamSynchronize(queue.stream()), "copy of weights");
  }
  WeightMatrix packed = weights;
  packed.data = to;
  packed.row_bytes = row_bytes;
  packed.packed = true;
  if (queue.cublas() != nullptr && weights.type != WeightType::kF32) {
    queue.cublas()->Prepare(queue, CublasWeights(packed));
  }
  return packed;
}

size_t MatMulFloatScratchFloats(size_t max_rows, size_t max_columns) {
  const size_t padded = max_columns + kSegmentsPerLaunch * kFloatStep;
  return max_rows * ((padded + kFloatStep) / kFloatStep * kFloatStep) / 2;
}

void MatMulFloat(const CudaQueue& queue, const MatMulArgs& args) {
  if (args.x.rows == 0 || args.weights.rows == 0) return;
  const size_t segments = args.segment_ends.empty() ? 1 : args.segment_ends.size();
  for (size_t first = 0; first < segments; first += kSegmentsPerLaunch) {
    const Part part = MakePart(args, first);
    if (args.weights.type == WeightType::kF16) {
      MatMul16<WeightType::kF16>(queue, args, part);
    } else if (args.weights.type == WeightType::kBF16) {
      MatMul16<WeightType::kBF16>(queue, args, part);
    } else {
      MatMulF32(queue, args, part);
    }
  }
}

}  // namespace millrace::kernels::cuda
