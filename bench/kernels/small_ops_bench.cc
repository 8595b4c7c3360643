#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
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

}  // namespace

void BenchAttention(const Backend& backend, const OpBenchOptions& options) {
  for (const size_t context : {512, 8192}) {
    std::vector<uint32_t> ids(context / kBlockTokens);
    std::iota(ids.begin(), ids.end(), 0u);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
    std::vector<float> keys(context * kKvHeads * kHeadSize, 0.25f), values(keys.size(), 0.5f);
    std::vector<float> scratch(backend.AttentionScratchFloats(context, kHeads, kKvHeads));
    for (const size_t rows : {size_t{1}, kRows}) {
      std::vector<float> queries(rows * kHeads * kHeadSize, 0.1f), out(queries.size());
      PagedAttentionArgs args;
      args.kv = {keys.data(), values.data(), kBlockTokens, kKvHeads, kHeadSize};
      args.queries = queries.data();
      args.out = out.data();
      args.block_ids = ids.data();
      args.first_position = static_cast<uint32_t>(context - rows);
      args.rows = rows;
      args.heads = kHeads;
      args.scale = 0.125f;
      args.scratch = scratch.data();
      const double seconds = Seconds(options.least_seconds, [&] { backend.PagedAttention(args); });
      const double flops = 4.0 * static_cast<double>(rows * kHeads * kHeadSize * context);
      std::printf(
          "{\"op\": \"attention\", \"context\": %zu, \"rows\": %zu, \"seconds\": %.9f, \"flops\": %.0f, "
          "\"bytes\": %zu}\n",
          context, rows, seconds, flops, 2 * keys.size() * sizeof(float));
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
  std::vector<uint32_t> ids(kRows / kBlockTokens);
  std::iota(ids.begin(), ids.end(), 0u);
  std::vector<float> keys(kRows * kKvHeads * kHeadSize), values(keys);
  const PagedKv kv{keys.data(), values.data(), kBlockTokens, kKvHeads, kHeadSize};
  Print("store_kv 3 x 64",
        Seconds(least,
                [&] {
                  backend.StoreKv({kv, a.data(), b.data(), ids.data(), 0, kRows});
                }),
        2 * keys.size(), 2 * keys.size() * sizeof(float));
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
