#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/raw_weights.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kMaxGridRows = 65535;  // of grid.y (CUDA C++ Programming Guide, technical specifications)

struct NormRow {
  const float* x;
  const float* weight;
  float* out;
  uint32_t columns;
  float epsilon;
};

__global__ void __launch_bounds__(kThreads, 2) RmsNormKernel(NormRow row) {
  float* shared = shared_memory<float>();
  const size_t offset = size_t{blockIdx.x} * row.columns;
  const float* x = row.x + offset;
  float* out = row.out + offset;
  const float scale = NormScale(SumOfSquares(x, row.columns, shared), row.columns, row.epsilon);
  const bool vectors = IsAligned16(x) && IsAligned16(row.weight) && IsAligned16(out);
  const uint32_t whole = vectors ? row.columns / 4 * 4 : 0;
  for (uint32_t i = 4 * threadIdx.x; i < whole; i += 4 * kThreads) {
    float4 v = *reinterpret_cast<const float4*>(x + i);
    const float4 w = *reinterpret_cast<const float4*>(row.weight + i);
    v.x = Normed(v.x, scale, w.x);
    v.y = Normed(v.y, scale, w.y);
    v.z = Normed(v.z, scale, w.z);
    v.w = Normed(v.w, scale, w.w);
    *reinterpret_cast<float4*>(out + i) = v;
  }
  for (uint32_t i = whole + threadIdx.x; i < row.columns; i += kThreads) {
    out[i] = Normed(x[i], scale, row.weight[i]);
  }
}

struct RopeRow {
  float* x;
  const uint32_t* positions;
  const float* cos_sin;
  uint32_t heads;
  uint32_t head_size;
  uint32_t pairs;  // that are turned, of each head
};

__global__ void __launch_bounds__(kThreads, 2) RopeKernel(RopeRow row) {
  float* x = row.x + size_t{blockIdx.x} * row.heads * row.head_size;
  const float* cos_sin = row.cos_sin + size_t{row.positions[blockIdx.x]} * row.pairs * 2;
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
    SwiGluKernel(const float* gate, const float* up, float* out, size_t count, bool vectors) {
  const size_t i = 4 * (size_t{blockIdx.x} * kThreads + threadIdx.x);
  if (vectors && i + 4 <= count) {
    const float4 g = *reinterpret_cast<const float4*>(gate + i);
    float4 v = *reinterpret_cast<const float4*>(up + i);
    v.x = SiluTimes(g.x, v.x);
    v.y = SiluTimes(g.y, v.y);
    v.z = SiluTimes(g.z, v.z);
    v.w = SiluTimes(g.w, v.w);
    *reinterpret_cast<float4*>(out + i) = v;
    return;
  }
  for (size_t j = i; j < i + 4 && j < count; ++j) out[j] = SiluTimes(gate[j], up[j]);
}

struct PartialsOfRows {
  const float* partials[kPartialsPerLaunch];
  uint32_t count;
  float* out;
  size_t rows;
  size_t columns;
  size_t begin;
  size_t end;
  bool vectors;
};

__global__ void __launch_bounds__(kThreads, 2) AddPartialsKernel(PartialsOfRows args) {
  const size_t column = args.begin + 4 * (size_t{blockIdx.x} * kThreads + threadIdx.x);
  if (column >= args.end) return;
  const bool vectors = args.vectors && column + 4 <= args.end;
  for (size_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
    const size_t at = row * args.columns + column;
    if (vectors) {
      float4 sum = *reinterpret_cast<const float4*>(args.out + at);
      for (uint32_t p = 0; p < args.count; ++p) {
        const float4 v = *reinterpret_cast<const float4*>(args.partials[p] + at);
        sum.x = __fadd_rn(sum.x, v.x);
        sum.y = __fadd_rn(sum.y, v.y);
        sum.z = __fadd_rn(sum.z, v.z);
        sum.w = __fadd_rn(sum.w, v.w);
      }
      *reinterpret_cast<float4*>(args.out + at) = sum;
      continue;
    }
    for (size_t i = 0; i < 4 && column + i < args.end; ++i) {
      float sum = args.out[at + i];
      for (uint32_t p = 0; p < args.count; ++p) sum = __fadd_rn(sum, args.partials[p][at + i]);
      args.out[at + i] = sum;
    }
  }
}

struct TableRows {
  const uint32_t* ids;
  const uint8_t* data;
  size_t row_bytes;
  float* out;
  uint32_t columns;
};

template <WeightType type>
__global__ void __launch_bounds__(kThreads, 2) EmbedKernel(TableRows args) {
  const uint8_t* row = args.data + args.ids[blockIdx.x] * args.row_bytes;
  float* out = args.out + size_t{blockIdx.x} * args.columns;
  for (uint32_t i = threadIdx.x; i < args.columns; i += kThreads) out[i] = RawWeight<type>(row, i);
}

template <WeightType type>
void EmbedRows(const CudaQueue& queue, const EmbedArgs& args) {
  const TableRows rows{args.ids, args.table.data, args.table.row_bytes, args.out,
                       static_cast<uint32_t>(args.table.columns)};
  const LaunchShape shape{dim3(static_cast<unsigned>(args.rows)), dim3(kThreads)};
  queue.Check(Launch(EmbedKernel<type>, shape, queue.stream(), rows), "launch of Embed");
}

bool IsAligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(float4) == 0;
}

unsigned BlocksOfFours(size_t count) {
  return static_cast<unsigned>((count + 4 * kThreads - 1) / (4 * kThreads));
}

void AddSomePartials(const CudaQueue& queue, const AddPartialsArgs& args,
                     absl::Span<const float* const> some) {
  PartialsOfRows rows{};
  rows.vectors = IsAligned(args.out + args.begin) && (args.columns % 4 == 0 || args.rows == 1);
  for (size_t i = 0; i < some.size(); ++i) {
    rows.partials[i] = some[i];
    rows.vectors = rows.vectors && IsAligned(some[i] + args.begin);
  }
  rows.count = static_cast<uint32_t>(some.size());
  rows.out = args.out;
  rows.rows = args.rows;
  rows.columns = args.columns;
  rows.begin = args.begin;
  rows.end = args.end;
  const unsigned grid_rows = static_cast<unsigned>(args.rows < kMaxGridRows ? args.rows : kMaxGridRows);
  const LaunchShape shape{dim3(BlocksOfFours(args.end - args.begin), grid_rows), dim3(kThreads)};
  queue.Check(Launch(AddPartialsKernel, shape, queue.stream(), rows), "launch of AddPartials");
}

}  // namespace

void RmsNorm(const CudaQueue& queue, const RmsNormArgs& args) {
  if (args.rows == 0 || args.columns == 0) return;
  const NormRow row{args.x, args.weight, args.out, static_cast<uint32_t>(args.columns), args.epsilon};
  const LaunchShape shape{dim3(static_cast<unsigned>(args.rows)), dim3(kThreads),
                          kNormSharedFloats * sizeof(float)};
  queue.Check(Launch(RmsNormKernel, shape, queue.stream(), row), "launch of RmsNorm");
}

void Rope(const CudaQueue& queue, const RopeArgs& args) {
  if (args.rows == 0 || args.heads == 0 || args.rope_dims == 0) return;
  const RopeRow row{args.x,
                    args.positions,
                    args.cos_sin,
                    static_cast<uint32_t>(args.heads),
                    static_cast<uint32_t>(args.head_size),
                    static_cast<uint32_t>(args.rope_dims / 2)};
  const LaunchShape shape{dim3(static_cast<unsigned>(args.rows)), dim3(kThreads)};
  queue.Check(Launch(RopeKernel, shape, queue.stream(), row), "launch of Rope");
}

void SwiGlu(const CudaQueue& queue, const SwiGluArgs& args) {
  if (args.count == 0) return;
  const bool vectors = IsAligned(args.gate) && IsAligned(args.up) && IsAligned(args.out);
  const LaunchShape shape{dim3(BlocksOfFours(args.count)), dim3(kThreads)};
  queue.Check(Launch(SwiGluKernel, shape, queue.stream(), args.gate, args.up, args.out, args.count, vectors),
              "launch of SwiGlu");
}

void AddPartials(const CudaQueue& queue, const AddPartialsArgs& args) {
  if (args.rows == 0 || args.begin >= args.end) return;
  for (size_t i = 0; i < args.partials.size(); i += kPartialsPerLaunch) {
    AddSomePartials(queue, args, args.partials.subspan(i, kPartialsPerLaunch));
  }
}

void Embed(const CudaQueue& queue, const EmbedArgs& args) {
  if (args.rows == 0) return;
  switch (args.table.type) {
    case WeightType::kF32:
      return EmbedRows<WeightType::kF32>(queue, args);
    case WeightType::kF16:
      return EmbedRows<WeightType::kF16>(queue, args);
    case WeightType::kBF16:
      return EmbedRows<WeightType::kBF16>(queue, args);
    case WeightType::kQ8_0:
      return EmbedRows<WeightType::kQ8_0>(queue, args);
    case WeightType::kQ4_0:
      return EmbedRows<WeightType::kQ4_0>(queue, args);
    case WeightType::kQ4_1:
      return EmbedRows<WeightType::kQ4_1>(queue, args);
    case WeightType::kQ5_0:
      return EmbedRows<WeightType::kQ5_0>(queue, args);
    case WeightType::kQ4_K:
      return EmbedRows<WeightType::kQ4_K>(queue, args);
    case WeightType::kQ5_K:
      return EmbedRows<WeightType::kQ5_K>(queue, args);
    case WeightType::kQ6_K:
      return EmbedRows<WeightType::kQ6_K>(queue, args);
  }
}

}  // namespace millrace::kernels::cuda
