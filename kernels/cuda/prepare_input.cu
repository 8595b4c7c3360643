#include "kernels/cpu/packed_layout.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/launch.h"

// Rows of activations rounded to 8 bits, in the layout and with the bits of the CPU backends (kernels/cpu/
// quantize_impl.h), from what a row is given as: plain, normalised on the way, or gated on the way. One block
// of threads takes the kInputRows rows that lie together.
namespace millrace::kernels::cuda {
namespace {

using cpu::InputBlock;
using cpu::kInputRows;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
static_assert(kActivationBlock == kWarp);

// A source gives each value of a row once, and has it kept where the float32 input of products with weights
// that are not quantised is; null: that is where it came from.
struct Plain {
  const float* x;
  __device__ __forceinline__ void Begin(size_t /*row*/, uint32_t /*columns*/, float* /*shared*/) {}
  __device__ __forceinline__ float Value(size_t row, uint32_t columns, uint32_t i) const {
    return x[row * columns + i];
  }
  __device__ __forceinline__ float* kept() const { return nullptr; }
};

struct Norm {
  const float* x;
  const float* weight;
  float* out;
  float epsilon;
  float scale;
  __device__ __forceinline__ void Begin(size_t row, uint32_t columns, float* shared) {
    scale = NormScale(SumOfSquares(x + row * columns, columns, shared), columns, epsilon);
  }
  __device__ __forceinline__ float Value(size_t row, uint32_t columns, uint32_t i) const {
    return Normed(x[row * columns + i], scale, weight[i]);
  }
  __device__ __forceinline__ float* kept() const { return out; }
};

struct Gated {
  const float* gate;
  const float* up;
  float* out;  // may be gate
  __device__ __forceinline__ void Begin(size_t /*row*/, uint32_t /*columns*/, float* /*shared*/) {}
  __device__ __forceinline__ float Value(size_t row, uint32_t columns, uint32_t i) const {
    return SiluTimes(gate[row * columns + i], up[row * columns + i]);
  }
  __device__ __forceinline__ float* kept() const { return out; }
};

// What a warp finds of a block, its lane being the element.
struct Rounded {
  int quant;
  float scale;
  int sum;
  int first_sum;
};

__device__ __forceinline__ Rounded RoundBlock(float value) {
  constexpr uint32_t kInfinityBits = 0x7F800000;
  constexpr float kMaxQuant = 127;
  constexpr float kLeast = 0x1p-100f;
  uint32_t bits = __float_as_uint(value) & 0x7FFFFFFFu;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, bits, step);
    bits = other > bits ? other : bits;
  }
  const float max = __uint_as_float(bits);
  Rounded rounded = {0, 0, 0, 0};
  if (bits >= kInfinityBits || max < kLeast) {
    rounded.scale = bits >= kInfinityBits ? __uint_as_float(0x7FC00000u) : 0.0f;
    return rounded;
  }
  rounded.scale = __fdiv_rn(max, kMaxQuant);
  const float shifted = __fadd_rn(__fmul_rn(value, __fdiv_rn(kMaxQuant, max)), 0x1.8p23f);
  rounded.quant = static_cast<int>(__float_as_uint(shifted) - 0x4B400000u);
  int sum = rounded.quant;
  for (int step = 1; step < kWarp; step *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, step);
    // After four steps lanes 0 .. 15 have the sum of the first half.
    if (step == kWarp / 4) rounded.first_sum = __shfl_sync(kAllLanes, sum, 0);
  }
  rounded.sum = sum;
  return rounded;
}

__device__ __forceinline__ void StoreBlock(const Rounded& rounded, uint32_t row, InputBlock* to) {
  const unsigned lane = threadIdx.x % kWarp;
  to->quants[row][lane] = static_cast<int8_t>(rounded.quant);
  if (lane != 0) return;
  to->scale[row] = rounded.scale;
  to->scaled_sum[row] = __fmul_rn(rounded.scale, static_cast<float>(rounded.sum));
  to->minus_sum[row] = -rounded.sum;
  to->minus_first_sum[row] = static_cast<int16_t>(-rounded.first_sum);
}

struct PrepareShape {
  const float* x;  // the values, where they are kept
  uint32_t rows;
  uint32_t columns;
  InputBlock* out;
  InputBlock* refinements;
  bool refine;
};

// Of a row's scales, in shared memory: above what square a block is refined. As one thread adds them.
__device__ __forceinline__ float RefineAboveSquare(const float* scales, uint32_t blocks) {
  float squares = 0;
  for (uint32_t b = 0; b < blocks; ++b) squares = __fadd_rn(squares, __fmul_rn(scales[b], scales[b]));
  return __fdiv_rn(__fmul_rn(cpu::kRefineAbove, squares), static_cast<float>(blocks));
}

// Shared memory: [kInputRows][blocks] scales, kInputRows bounds, kNormSharedFloats.
template <class Source>
__global__ void __launch_bounds__(kThreads, 1) Prepare(const PrepareShape shape, Source source) {
  const uint32_t blocks = shape.columns / kActivationBlock;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* norm_space = shared_memory<float>();
  float* bounds = norm_space + kNormSharedFloats;
  float* scales = bounds + kInputRows;
  const size_t row0 = size_t{blockIdx.x} * kInputRows;
  const uint32_t rows = shape.rows - row0 < kInputRows ? static_cast<uint32_t>(shape.rows - row0)
                                                       : static_cast<uint32_t>(kInputRows);
  InputBlock* out = shape.out + size_t{blockIdx.x} * blocks;
  InputBlock* refinements = shape.refinements + size_t{blockIdx.x} * blocks;
  Source of_row = source;
  for (uint32_t r = 0; r < rows; ++r) {
    of_row.Begin(row0 + r, shape.columns, norm_space);
    for (uint32_t b = warp; b < blocks; b += kWarps) {
      const uint32_t i = b * kActivationBlock + lane;
      const float value = of_row.Value(row0 + r, shape.columns, i);
      if (of_row.kept() != nullptr) of_row.kept()[(row0 + r) * shape.columns + i] = value;
      const Rounded rounded = RoundBlock(value);
      StoreBlock(rounded, r, out + b);
      if (lane == 0) {
        scales[r * blocks + b] = rounded.scale;
        if (r == 0) out[b].refined = false;
      }
    }
  }
  if (!shape.refine) return;
  __syncthreads();
  if (threadIdx.x < rows) bounds[threadIdx.x] = RefineAboveSquare(scales + threadIdx.x * blocks, blocks);
  __syncthreads();
  for (uint32_t b = warp; b < blocks; b += kWarps) {
    bool any = false;
    for (uint32_t r = 0; r < rows; ++r) {
      const float scale = scales[r * blocks + b];
      any = any || __fmul_rn(scale, scale) > bounds[r];
    }
    if (!any) continue;
    if (lane == 0) out[b].refined = true;
    for (uint32_t r = 0; r < kInputRows; ++r) {
      Rounded rest = {0, 0, 0, 0};
      if (r < rows) {
        const float scale = scales[r * blocks + b];
        if (__fmul_rn(scale, scale) > bounds[r]) {
          // This thread wrote it, if anyone did.
          const float value = shape.x[(row0 + r) * shape.columns + b * kActivationBlock + lane];
          const float quant = static_cast<float>(out[b].quants[r][lane]);
          rest = RoundBlock(__fsub_rn(value, __fmul_rn(scale, quant)));
        }
      }
      StoreBlock(rest, r, refinements + b);
    }
  }
}

// Wider rows have scales that no block's shared memory holds.
constexpr size_t kMostColumns = size_t{kActivationBlock} * 2560;

template <class Source>
MatMulInput Run(const CudaQueue& queue, const PrepareInputArgs& args, const Source& source) {
  MatMulInput input{args.x, args.rows, args.columns, nullptr};
  const uint32_t blocks = static_cast<uint32_t>(args.columns / kActivationBlock);
  PrepareShape shape;
  shape.x = args.x;
  shape.rows = static_cast<uint32_t>(args.rows);
  shape.columns = static_cast<uint32_t>(args.columns);
  shape.out = reinterpret_cast<InputBlock*>(args.buffer);
  shape.refinements = shape.out + cpu::InputBlocks(args.rows, args.columns);
  shape.refine = args.rounding == InputRounding::kRefineLargest;
  const LaunchShape launch{dim3(static_cast<unsigned>((args.rows + kInputRows - 1) / kInputRows)),
                           dim3(kThreads),
                           (kNormSharedFloats + kInputRows + kInputRows * blocks) * sizeof(float)};
  queue.Check(Launch(Prepare<Source>, launch, queue.stream(), shape, source), "launch of rounding to 8 bits");
  input.quantized = args.buffer;
  return input;
}

bool Rounds(const PrepareInputArgs& args) {
  return args.buffer != nullptr && MatMulInputBytes(args.rows, args.columns) != 0;
}

}  // namespace

size_t MatMulInputBytes(size_t max_rows, size_t columns) {
  if (columns % kActivationBlock != 0 || columns > kMostColumns) return 0;
  return 2 * cpu::InputBlocks(max_rows, columns) * sizeof(InputBlock);
}

MatMulInput PrepareInput(const CudaQueue& queue, const PrepareInputArgs& args) {
  if (!Rounds(args)) return {args.x, args.rows, args.columns, nullptr};
  return Run(queue, args, Plain{args.x});
}

MatMulInput NormAndPrepare(const CudaQueue& queue, const NormAndPrepareArgs& args) {
  if (!Rounds(args.prepare)) {
    RmsNorm(queue, args.norm);
    return PrepareInput(queue, args.prepare);
  }
  return Run(queue, args.prepare, Norm{args.norm.x, args.norm.weight, args.norm.out, args.norm.epsilon, 0});
}

MatMulInput SwiGluAndPrepare(const CudaQueue& queue, const SwiGluAndPrepareArgs& args) {
  if (!Rounds(args.prepare)) {
    SwiGlu(queue, args.swiglu);
    return PrepareInput(queue, args.prepare);
  }
  return Run(queue, args.prepare, Gated{args.swiglu.gate, args.swiglu.up, args.swiglu.out});
}

}  // namespace millrace::kernels::cuda
