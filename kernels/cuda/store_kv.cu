// StoreKv and RopeAndStoreKv: a block a row. Same bits as the CPU backends, but for what a NaN looks like.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/launch.h"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;

struct RowsToStore {
  BatchTables tables;
  const float* keys;
  const float* values;
  uint8_t* key_blocks;
  uint8_t* value_blocks;
  float* key_scales;
  float* value_scales;
  KvShape shape;
};

struct RowsToTurn {
  float* x;
  const float* cos_sin;
  uint32_t heads;
  uint32_t head_size;
  uint32_t pairs;  // that are turned, of each head
};

__device__ __forceinline__ void StoreHalves(const RowsToStore& args, uint32_t block, uint32_t slot) {
  const uint32_t width = args.shape.kv_heads * args.shape.head_size;
  const size_t begin = size_t{blockIdx.x} * width;
  auto* keys = reinterpret_cast<__half*>(args.key_blocks);
  auto* values = reinterpret_cast<__half*>(args.value_blocks);
  for (uint32_t i = threadIdx.x; i < width; i += kThreads) {
    const uint32_t head = i / args.shape.head_size;
    const uint32_t dim = i - head * args.shape.head_size;
    keys[args.shape.KeyAt(block, head, slot, dim)] = __float2half_rn(args.keys[begin + i]);
    values[args.shape.ValueAt(block, head, slot, dim)] = __float2half_rn(args.values[begin + i]);
  }
}

// What kI8 divides by: 0 or NaN where nothing can be kept. Called by whole warps, which get the same.
__device__ __forceinline__ float RoundingScale(const float* x, uint32_t count) {
  constexpr float kLeastNormal = 0x1p-126f;
  float most = 0;
  bool finite = true;
  for (uint32_t i = threadIdx.x % kWarp; i < count; i += kWarp) {
    const float magnitude = __uint_as_float(__float_as_uint(x[i]) & 0x7fffffffu);
    finite = finite && __float_as_uint(magnitude) < 0x7f800000u;
    most = magnitude > most ? magnitude : most;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, most, step);
    most = other > most ? other : most;
  }
  if (!__all_sync(kAllLanes, finite)) return __uint_as_float(0x7fc00000u);
  const float scale = __fdiv_rn(most, 127.0f);
  return scale < kLeastNormal ? 0.0f : scale;
}

// A warp a head: keys first, then values.
__device__ __forceinline__ void StoreBytes(const RowsToStore& args, uint32_t block, uint32_t slot) {
  const KvShape& shape = args.shape;
  for (uint32_t i = threadIdx.x / kWarp; i < 2 * shape.kv_heads; i += kThreads / kWarp) {
    const bool is_key = i < shape.kv_heads;
    const uint32_t head = is_key ? i : i - shape.kv_heads;
    const float* x =
        (is_key ? args.keys : args.values) + (size_t{blockIdx.x} * shape.kv_heads + head) * shape.head_size;
    const float scale = RoundingScale(x, shape.head_size);
    const bool none = !(scale > 0);
    const float inverse = none ? 0.0f : __fdiv_rn(1.0f, scale);
    for (uint32_t dim = threadIdx.x % kWarp; dim < shape.head_size; dim += kWarp) {
      const int quant = none ? 0 : __float2int_rn(__fmul_rn(x[dim], inverse));
      const size_t at = is_key ? shape.KeyAt(block, head, slot, dim) : shape.ValueAt(block, head, slot, dim);
      (is_key ? args.key_blocks : args.value_blocks)[at] = static_cast<uint8_t>(quant);
    }
    if (threadIdx.x % kWarp == 0) {
      (is_key ? args.key_scales : args.value_scales)[shape.ScaleAt(block, head, slot)] = scale;
    }
  }
}

__device__ __forceinline__ void StoreRow(const RowsToStore& args) {
  const uint32_t segment = args.tables.row_segments[blockIdx.x];
  const uint32_t position = args.tables.positions[blockIdx.x];
  const uint32_t index = position / args.shape.block_tokens;
  const uint32_t block = args.tables.blocks[args.tables.segments[segment].first_block + index];
  const uint32_t slot = position - index * args.shape.block_tokens;
  if (args.key_scales == nullptr) {
    StoreHalves(args, block, slot);
  } else {
    StoreBytes(args, block, slot);
  }
}

__global__ void __launch_bounds__(kThreads, 2) StoreKvKernel(RowsToStore args) {
  if (args.tables.row_segments[blockIdx.x] == kNoSegment) return;
  StoreRow(args);
}

__device__ __forceinline__ void TurnRow(const RowsToTurn& row, uint32_t position) {
  float* x = row.x + size_t{blockIdx.x} * row.heads * row.head_size;
  const float* cos_sin = row.cos_sin + size_t{position} * row.pairs * 2;
  for (uint32_t i = threadIdx.x; i < row.heads * row.pairs; i += kThreads) {
    const uint32_t head = i / row.pairs;
    const uint32_t pair = i - head * row.pairs;
    float* at = x + head * row.head_size + 2 * pair;
    const float2 turned =
        RopePair(make_float2(at[0], at[1]), make_float2(cos_sin[2 * pair], cos_sin[2 * pair + 1]));
    at[0] = turned.x;
    at[1] = turned.y;
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    RopeAndStoreKvKernel(RowsToTurn queries, RowsToTurn keys, RowsToStore store) {
  if (store.tables.row_segments[blockIdx.x] == kNoSegment) return;
  const uint32_t position = store.tables.positions[blockIdx.x];
  TurnRow(queries, position);
  TurnRow(keys, position);
  __syncthreads();
  StoreRow(store);
}

RowsToStore RowsOf(const StoreKvArgs& args) {
  RowsToStore rows{};
  rows.tables = static_cast<const PlacedTables*>(args.tables)->tables;
  rows.keys = args.keys;
  rows.values = args.values;
  rows.key_blocks = args.kv.key_blocks;
  rows.value_blocks = args.kv.value_blocks;
  rows.key_scales = args.kv.type == KvType::kI8 ? args.kv.key_scales : nullptr;
  rows.value_scales = args.kv.value_scales;
  rows.shape = {static_cast<uint32_t>(args.kv.block_tokens), static_cast<uint32_t>(args.kv.kv_heads),
                static_cast<uint32_t>(args.kv.head_size)};
  return rows;
}

RowsToTurn RowsOf(const RopeArgs& args) {
  return {args.x, args.cos_sin, static_cast<uint32_t>(args.heads), static_cast<uint32_t>(args.head_size),
          static_cast<uint32_t>(args.rope_dims / 2)};
}

bool CanStore(const CudaQueue& queue, const StoreKvArgs& args) {
  if (args.kv.type == KvType::kF32) {
    queue.Check(cudaErrorNotSupported, "keys and values of float32 (the KV type must be f16 or int8)");
  }
  return args.kv.type != KvType::kF32 && args.rows != 0;
}

}  // namespace

void StoreKv(const CudaQueue& queue, const StoreKvArgs& args) {
  if (!CanStore(queue, args)) return;
  const LaunchShape shape{dim3(static_cast<unsigned>(args.rows)), dim3(kThreads)};
  queue.Check(Launch(StoreKvKernel, shape, queue.stream(), RowsOf(args)), "launch of StoreKv");
}

void RopeAndStoreKv(const CudaQueue& queue, const RopeAndStoreKvArgs& args) {
  if (!CanStore(queue, args.store)) return;
  const LaunchShape shape{dim3(static_cast<unsigned>(args.store.rows)), dim3(kThreads)};
  queue.Check(Launch(RopeAndStoreKvKernel, shape, queue.stream(), RowsOf(args.queries), RowsOf(args.keys),
                     RowsOf(args.store)),
              "launch of RopeAndStoreKv");
}

}  // namespace millrace::kernels::cuda
