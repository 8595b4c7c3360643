#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "bench/cuda/bench.h"
#include "kernels/cuda/cuda_ops.h"

namespace millrace::kernels::cuda {
namespace {

// A model of 8 B parameters (Llama 3).
constexpr size_t kHeads = 32, kKvHeads = 8, kHeadSize = 128, kBlockTokens = 16;

// `rows` last positions of each of `sequences`, all `context` long.
struct Case {
  size_t sequences, rows, context;
};
constexpr Case kCases[] = {{1, 1, 512}, {1, 1, 8192}, {32, 1, 4096}, {1, 512, 512}, {1, 512, 8192}};
constexpr Case kSmokeCases[] = {{2, 1, 48}, {1, 20, 300}};

void BenchCase(const BenchOptions& options, const CudaQueue& queue, KvType type, const Case& c) {
  const size_t tokens = c.sequences * ((c.context + kBlockTokens - 1) / kBlockTokens * kBlockTokens);
  const size_t elements = tokens * kKvHeads * kHeadSize, rows = c.sequences * c.rows;
  const DeviceBuffer keys(elements * KvElementBytes(type)), values(elements * KvElementBytes(type));
  const DeviceBuffer scales(2 * tokens * kKvHeads * sizeof(float));
  const DeviceBuffer queries(rows * kHeads * kHeadSize * sizeof(float)),
      out(rows * kHeads * kHeadSize * sizeof(float));
  const DeviceBuffer scratch(std::max<size_t>(1, AttentionScratch({rows, kHeads, kHeadSize, c.context})) *
                             sizeof(float));
  // Small numbers of either type.
  Check(cudaMemset(keys.data(), 0x21, elements * KvElementBytes(type)), "cudaMemset");
  Check(cudaMemset(values.data(), 0x21, elements * KvElementBytes(type)), "cudaMemset");
  scales.Fill(2 * tokens * kKvHeads, 1);
  queries.Fill(rows * kHeads * kHeadSize, 2);

  std::vector<uint32_t> ids(tokens / kBlockTokens), positions;
  std::iota(ids.begin(), ids.end(), 0u);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  std::vector<KvSegment> segments;
  for (size_t i = 0; i < c.sequences; ++i) {
    const auto first = static_cast<uint32_t>(c.context - c.rows);
    segments.push_back({ids.data() + i * ids.size() / c.sequences, first, i * c.rows, c.rows});
    for (size_t row = 0; row < c.rows; ++row) positions.push_back(first + static_cast<uint32_t>(row));
  }
  const size_t batch_bytes = BatchBytes(rows, c.context, kBlockTokens);
  const DeviceBuffer batch(batch_bytes);
  uint8_t* staging = nullptr;
  Check(cudaHostAlloc(reinterpret_cast<void**>(&staging), batch_bytes, cudaHostAllocDefault),
        "cudaHostAlloc");
  PlaceBatchArgs place;
  place.segments = segments;
  place.positions = positions.data();
  place.rows = place.max_rows = rows;
  place.block_tokens = kBlockTokens;
  place.context_tokens = c.context;
  place.buffer = batch.data();
  place.staging = staging;
  const BatchRows placed = PlaceBatch(queue, place);

  PagedAttentionArgs args;
  args.kv = {keys.data(), values.data(), nullptr, nullptr, type, kBlockTokens, kKvHeads, kHeadSize};
  if (type == KvType::kI8) {
    args.kv.key_scales = scales.floats();
    args.kv.value_scales = scales.floats() + tokens * kKvHeads;
  }
  args.queries = queries.floats();
  args.out = out.floats();
  args.segments = segments;
  args.heads = kHeads;
  args.scale = 0.0883883f;
  args.scratch = scratch.floats();
  args.tables = placed.tables;
  args.rows = rows;
  const double seconds = DeviceSeconds(options, queue, [&] { PagedAttention(queue, args); });
  Check(cudaFreeHost(staging), "cudaFreeHost");
  const double flops = 4.0 * static_cast<double>(rows * kHeads * kHeadSize * c.context);
  const double bytes = 2.0 * static_cast<double>(elements * KvElementBytes(type));
  Print(options, {"attention", type == KvType::kI8 ? "int8" : "f16", c.sequences, c.context, rows, bytes,
                  flops, seconds});
}

}  // namespace

void BenchAttention(const BenchOptions& options, const CudaQueue& queue) {
  for (const KvType type : {KvType::kF16, KvType::kI8}) {
    if (options.smoke) {
      for (const Case& c : kSmokeCases) BenchCase(options, queue, type, c);
    } else {
      for (const Case& c : kCases) BenchCase(options, queue, type, c);
    }
  }
}

}  // namespace millrace::kernels::cuda
