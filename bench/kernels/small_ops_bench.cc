#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "bench/kernels/op_bench.h"
#include "bench/kernels/timing.h"

namespace millrace::kernels {
namespace {

// SmolLM2-135M's shapes.
constexpr size_t kHidden = 576, kFfn = 1536, kHeads = 9, kKvHeads = 3, kHeadSize = 64, kBlockTokens = 16;
constexpr size_t kRows = 128;

void Print(const char* op, double seconds, size_t floats_read, size_t bytes_written) {
  std::printf("{\"op\": \"%s\", \"rows\": %zu, \"seconds\": %.9f, \"bytes\": %zu}\n", op, kRows, seconds,
              floats_read * sizeof(float) + bytes_written);
}

// The cache of one layer, all elements ordinary numbers, with its blocks in disorder.
struct BenchCache {
  BenchCache(KvType type, size_t tokens) : scales(2 * tokens * kKvHeads, 0.01f), ids(tokens / kBlockTokens) {
    const size_t bytes = tokens * kKvHeads * kHeadSize * KvElementBytes(type);
    elements.assign(2 * bytes, 0x21);
    std::iota(ids.begin(), ids.end(), 0u);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
    kv.key_blocks = elements.data();
    kv.value_blocks = elements.data() + bytes;
    kv.key_scales = scales.data();
    kv.value_scales = scales.data() + tokens * kKvHeads;
    kv.type = type;
    kv.block_tokens = kBlockTokens;
    kv.kv_heads = kKvHeads;
    kv.head_size = kHeadSize;
  }

  std::vector<uint8_t> elements;
  std::vector<float> scales;
  std::vector<uint32_t> ids;
  PagedKv kv;
};

constexpr std::pair<KvType, const char*> kKvTypes[] = {
    {KvType::kF32, "f32"}, {KvType::kF16, "f16"}, {KvType::kI8, "int8"}};

}  // namespace

void BenchAttention(const Backend& backend, const OpBenchOptions& options) {
  for (const auto& [type, name] : kKvTypes) {
    for (const size_t context : {512, 8192}) {
      const BenchCache cache(type, context);
      std::vector<float> scratch(backend.AttentionScratchFloats(kHeadSize));
      for (const size_t rows : {size_t{1}, kRows}) {
        std::vector<float> queries(rows * kHeads * kHeadSize, 0.1f), out(queries.size());
        const KvSegment segment{cache.ids.data(), static_cast<uint32_t>(context - rows), 0, rows};
        PagedAttentionArgs args;
        args.kv = cache.kv;
        args.queries = queries.data();
        args.out = out.data();
        args.segments = {&segment, 1};
        args.heads = kHeads;
        args.scale = 0.125f;
        args.scratch = scratch.data();
        const double seconds = Seconds(options.least_seconds, [&] { backend.PagedAttention(args); });
        const double flops = 4.0 * static_cast<double>(rows * kHeads * kHeadSize * context);
        std::printf(
            "{\"op\": \"attention\", \"kv\": \"%s\", \"context\": %zu, \"rows\": %zu, \"seconds\": %.9f, "
            "\"flops\": %.0f, \"bytes\": %zu}\n",
            name, context, rows, seconds, flops, cache.elements.size());
      }
    }
  }
}

void BenchSmallOps(const Backend& backend, const OpBenchOptions& options) {
  const double least = options.least_seconds;
  std::vector<float> a(kRows * kFfn, 0.7f), b(a), out(a);
  Print("swiglu 1536",
        Seconds(least,
                [&] {
                  backend.SwiGlu({a.data(), b.data(), out.data(), a.size()});
                }),
        2 * a.size(), out.size() * sizeof(float));
  Print("rms_norm 576",
        Seconds(least,
                [&] {
                  backend.RmsNorm({a.data(), b.data(), out.data(), kRows, kHidden, 1e-5f});
                }),
        kRows * kHidden, kRows * kHidden * sizeof(float));
  std::vector<uint32_t> positions(kRows);
  std::iota(positions.begin(), positions.end(), 0u);
  std::vector<float> cos_sin(kRows * kHeadSize, 0.5f);
  Print(
      "rope 9 x 64",
      Seconds(
          least,
          [&] {
            backend.Rope({out.data(), positions.data(), kRows, kHeads, kHeadSize, kHeadSize, cos_sin.data()});
          }),
      kRows * kHidden, kRows * kHidden * sizeof(float));
  const BenchCache cache(KvType::kF32, kRows);
  const KvSegment segment{cache.ids.data(), 0, 0, kRows};
  Print("store_kv 3 x 64",
        Seconds(least,
                [&] {
                  backend.StoreKv({cache.kv, a.data(), b.data(), {&segment, 1}});
                }),
        2 * kRows * kKvHeads * kHeadSize, cache.elements.size());
  std::vector<float> prepared(backend.MatMulInputBytes(kRows, kFfn) / sizeof(float) + 32);
  if (prepared.size() == 32) return;
  PrepareInputArgs prepare;
  prepare.x = a.data();
  prepare.rows = kRows;
  prepare.columns = kFfn;
  void* aligned = prepared.data();
  size_t space = prepared.size() * sizeof(float);
  prepare.buffer =
      static_cast<uint8_t*>(std::align(64, backend.MatMulInputBytes(kRows, kFfn), aligned, space));
  for (const InputRounding rounding : {InputRounding::kPlain, InputRounding::kRefineLargest}) {
    prepare.rounding = rounding;
    Print(rounding == InputRounding::kPlain ? "quantize 1536" : "quantize 1536, refined",
          Seconds(least, [&] { backend.PrepareInput(prepare); }), a.size(), a.size());
  }
}

}  // namespace millrace::kernels
