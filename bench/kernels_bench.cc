// kernels_bench --peaks: what one core can do, as JSON: fma peak of the widest instruction set, read
// bandwidth.
//
// kernels_bench [ISA ...]: speed of the ops at SmolLM2-135M's shapes, one thread, beside what the machine can
// do: fma peak and read bandwidth, measured in the same run. Weights are cycled through copies that no cache
// holds.
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace millrace::kernels {
namespace {

constexpr size_t kColdBytes = size_t{96} << 20;

struct Shape {
  const char* name;
  size_t n, k;
  WeightType type;
  double per_model;  // times a forward pass runs it
};
constexpr Shape kShapes[] = {{"attn q, o ", 576, 576, WeightType::kQ4_1, 60},
                             {"attn k, v ", 192, 576, WeightType::kQ4_1, 60},
                             {"gate, up  ", 1536, 576, WeightType::kQ4_1, 60},
                             {"down      ", 576, 1536, WeightType::kQ4_1, 30},
                             {"output    ", 49152, 576, WeightType::kQ8_0, 1}};

// Processor time of this thread: other programs on a shared machine count less than on the wall clock.
double Now() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Seconds one call takes in the fastest of five runs; each run lasts at least `least` seconds.
double Seconds(double least, const std::function<void()>& call) {
  call();
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < 5; ++run) {
    const double start = Now();
    int calls = 0;
    double elapsed = 0;
    do {
      call();
      ++calls;
      elapsed = Now() - start;
    } while (elapsed < least);
    best = std::min(best, elapsed / calls);
  }
  return best;
}

volatile float sink;

#if defined(__x86_64__)
constexpr int kFmaSteps = 10000;
constexpr int kFmaChains = 12;

__attribute__((target("avx2,fma"))) void FmaLoop256() {
  __m256 acc[kFmaChains];
  for (auto& a : acc) a = _mm256_set1_ps(1.0f);
  const __m256 factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(0.001f);
  for (int i = 0; i < kFmaSteps; ++i) {
    for (auto& a : acc) a = _mm256_fmadd_ps(a, factor, term);
  }
  for (auto& a : acc) sink = _mm256_cvtss_f32(a);
}

__attribute__((target("avx512f"))) void FmaLoop512() {
  __m512 acc[kFmaChains];
  for (auto& a : acc) a = _mm512_set1_ps(1.0f);
  const __m512 factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(0.001f);
  for (int i = 0; i < kFmaSteps; ++i) {
    for (auto& a : acc) a = _mm512_fmadd_ps(a, factor, term);
  }
  for (auto& a : acc) sink = _mm512_cvtss_f32(a);
}

double FmaPeakGflops(const std::string& isa) {
  if (isa == "avx512") return 32e-9 * kFmaSteps * kFmaChains / Seconds(0.05, FmaLoop512);
  if (isa == "avx2") return 16e-9 * kFmaSteps * kFmaChains / Seconds(0.05, FmaLoop256);
  return 0;
}
#else
double FmaPeakGflops(const std::string&) {
  return 0;
}
#endif

double ReadGigabytesPerSecond() {
  std::vector<uint64_t> words(kColdBytes / sizeof(uint64_t), 1);
  const double seconds = Seconds(0.2, [&] {
    uint64_t sums[8] = {};
    for (size_t i = 0; i < words.size(); i += 8) {
      for (size_t j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    sink = static_cast<float>(sums[0] + sums[7]);
  });
  return 1e-9 * static_cast<double>(kColdBytes) / seconds;
}

size_t RowBytes(const Shape& s) {
  return s.k / WeightBlockElements(s.type) * WeightBlockBytes(s.type);
}

std::vector<uint8_t> RandomBlocks(const Shape& s, size_t copies) {
  std::vector<uint8_t> bytes(copies * s.n * RowBytes(s));
  std::minstd_rand random(1);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random() >> 8);
  const size_t block = WeightBlockBytes(s.type);
  for (size_t i = 0; i < bytes.size(); i += block) {
    bytes[i + 1] = 0x2C;  // ordinary scales
    if (s.type == WeightType::kQ4_1) bytes[i + 3] = 0xAC;
  }
  return bytes;
}

double MatMulSeconds(const Backend& backend, const Shape& s, size_t rows, const std::vector<uint8_t>& bytes) {
  const size_t matrix = s.n * RowBytes(s);
  const size_t copies = bytes.size() / matrix;
  std::vector<float> x(rows * s.k, 0.5f), out(rows * s.n);
  const size_t floats = backend.MatMulScratchFloats(rows, s.k);
  std::unique_ptr<float, void (*)(void*)> scratch(
      static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64)), std::free);
  MatMulArgs args;
  args.x = backend.PrepareInput({x.data(), rows, s.k, nullptr});
  args.out = out.data();
  args.scratch = scratch.get();
  size_t next = 0;
  return Seconds(0.05, [&] {
    args.weights = {bytes.data() + next * matrix, s.type, s.n, s.k, RowBytes(s)};
    backend.MatMul(args);
    next = (next + 1) % copies;
    sink = out[0];
  });
}

void BenchMatMul(const Backend& backend, double peak, double bandwidth) {
  std::printf("%-10s %6s %5s %5s %10s %9s %7s %8s %7s\n", "matmul", "n", "k", "rows", "us", "GFLOP/s",
              "% peak", "GB/s", "% read");
  const std::vector<size_t> row_counts = {1, 2, 4, 8, 16, 128, 512};
  std::vector<double> model(row_counts.size());
  for (const Shape& s : kShapes) {
    const size_t copies = std::max<size_t>(1, kColdBytes / (s.n * RowBytes(s)));
    const std::vector<uint8_t> bytes = RandomBlocks(s, copies);
    for (size_t i = 0; i < row_counts.size(); ++i) {
      const size_t rows = row_counts[i];
      const bool output = s.n > 4096;
      if (output && rows > 16) continue;
      const double seconds = MatMulSeconds(backend, s, rows, bytes);
      // A prefill chunk wants the logits of one row at most.
      if (!output || rows <= 16) model[i] += seconds * s.per_model;
      const double gflops = 2e-9 * static_cast<double>(rows * s.n * s.k) / seconds;
      const double gigabytes = 1e-9 * static_cast<double>(s.n * RowBytes(s)) / seconds;
      std::printf("%-10s %6zu %5zu %5zu %10.1f %9.1f %7.1f %8.2f %7.1f\n", s.name, s.n, s.k, rows,
                  seconds * 1e6, gflops, peak > 0 ? 100 * gflops / peak : 0, gigabytes,
                  100 * gigabytes / bandwidth);
    }
  }
  for (size_t i = 0; i < row_counts.size(); ++i) {
    std::printf("all matrices, %3zu rows%s: %8.2f ms, %.0f tokens/s\n", row_counts[i],
                row_counts[i] <= 16 ? ", with output" : "", model[i] * 1e3,
                static_cast<double>(row_counts[i]) / model[i]);
  }
}

void BenchAttention(const Backend& backend) {
  constexpr size_t kHeads = 9, kKvHeads = 3, kHeadSize = 64, kBlockTokens = 16, kLayers = 30;
  std::printf("%-10s %8s %5s %12s %9s %18s\n", "attention", "context", "rows", "us", "GFLOP/s",
              "ms/token, 30 layers");
  for (const size_t context : {512, 2048, 8192}) {
    std::vector<uint32_t> ids(context / kBlockTokens);
    std::iota(ids.begin(), ids.end(), 0u);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
    std::vector<float> keys(context * kKvHeads * kHeadSize, 0.25f), values(keys.size(), 0.5f);
    std::vector<float> scratch(backend.AttentionScratchFloats(context, kHeads, kKvHeads));
    for (const size_t rows : {1, 128}) {
      std::vector<float> queries(rows * kHeads * kHeadSize, 0.1f), out(queries.size());
      const PagedKv kv{keys.data(), values.data(), kBlockTokens, kKvHeads, kHeadSize};
      const PagedAttentionArgs args{
          kv,   queries.data(), out.data(), ids.data(),    static_cast<uint32_t>(context - rows),
          rows, kHeads,         0.125f,     scratch.data()};
      const double seconds = Seconds(0.05, [&] { backend.PagedAttention(args); });
      const double flops = 4.0 * static_cast<double>(rows * kHeads * kHeadSize * context);
      std::printf("%-10s %8zu %5zu %12.1f %9.1f %18.3f\n", "", context, rows, seconds * 1e6,
                  1e-9 * flops / seconds, seconds * 1e3 * kLayers / static_cast<double>(rows));
    }
  }
}

void BenchSmall(const Backend& backend) {
  constexpr size_t kRows = 128;
  std::vector<float> gate(kRows * 1536, 0.7f), up(gate), out(gate);
  const double swiglu = Seconds(0.02, [&] {
    backend.SwiGlu({gate.data(), up.data(), out.data(), gate.size()});
  });
  const double norm = Seconds(0.02, [&] {
    backend.RmsNorm({gate.data(), up.data(), out.data(), kRows, 576, 1e-5f});
  });
  std::vector<uint32_t> positions(kRows);
  std::iota(positions.begin(), positions.end(), 0u);
  std::vector<float> cos_sin(kRows * 64, 0.5f);
  const double rope = Seconds(0.02, [&] {
    backend.Rope({out.data(), positions.data(), kRows, 9, 64, 64, cos_sin.data()});
  });
  std::vector<uint32_t> ids(kRows / 16);
  std::iota(ids.begin(), ids.end(), 0u);
  std::vector<float> keys(kRows * 192), values(keys);
  const PagedKv kv{keys.data(), values.data(), 16, 3, 64};
  const double store = Seconds(0.02, [&] {
    backend.StoreKv({kv, gate.data(), up.data(), ids.data(), 0, kRows});
  });
  std::printf("us a row: swiglu 1536 %.3f, rms_norm 576 %.3f, rope 9 x 64 %.3f, store_kv 3 x 64 %.3f\n",
              swiglu * 1e6 / kRows, norm * 1e6 / kRows, rope * 1e6 / kRows, store * 1e6 / kRows);
}

int PrintPeaks() {
  std::string isa = "avx512";
  if (!MakeCpuBackend({.isa = isa}).ok()) isa = "avx2";
  if (!MakeCpuBackend({.isa = isa}).ok()) isa = "portable";
  std::printf("{\"isa\": \"%s\", \"gflops\": %.1f, \"read_gbps\": %.2f}\n", isa.c_str(), FmaPeakGflops(isa),
              ReadGigabytesPerSecond());
  return 0;
}

int Main(int argc, char** argv) {
  std::vector<std::string> isas(argv + 1, argv + argc);
  if (isas == std::vector<std::string>{"--peaks"}) return PrintPeaks();
  if (isas.empty()) isas = {"avx2", "avx512"};
  for (const std::string& isa : isas) {
    const auto backend = MakeCpuBackend({.isa = isa});
    if (!backend.ok()) {
      std::fprintf(stderr, "%s\n", std::string(backend.status().message()).c_str());
      continue;
    }
    const double peak = FmaPeakGflops(isa), bandwidth = ReadGigabytesPerSecond();
    std::printf("== %s: fma peak %.1f GFLOP/s, read %.1f GB/s, one thread\n", (*backend)->name().c_str(),
                peak, bandwidth);
    BenchMatMul(**backend, peak, bandwidth);
    BenchAttention(**backend);
    BenchSmall(**backend);
  }
  return 0;
}

}  // namespace
}  // namespace millrace::kernels

int main(int argc, char** argv) {
  return millrace::kernels::Main(argc, argv);
}
