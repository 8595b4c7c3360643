// kernels_bench --peaks: what one core can do, as JSON: fma peak of the widest instruction set, read
// bandwidth.
//
// kernels_bench [--isa NAME] [--activations f32|int8] [--quick]: one round of bench/kernels/run.sh: every op
// once on one thread, beside what the machine can do, a line of JSON each; the first line holds the peaks.
#include <cstdio>
#include <cstring>
#include <string>

#include "bench/kernels/op_bench.h"
#include "bench/kernels/peaks.h"
#include "kernels/backend.h"

namespace millrace::kernels {
namespace {

constexpr double kLeastSeconds = 0.05;
constexpr double kQuickSeconds = 0.001;

// What "auto" chooses.
std::string BestIsa() {
  for (const char* isa : {"avx512vnni", "avx512", "avx2"}) {
    if (MakeCpuBackend({.isa = isa}).ok()) return isa;
  }
  return "portable";
}

int PrintPeaks() {
  const std::string isa = BestIsa();
  std::printf("{\"isa\": \"%s\", \"gflops\": %.1f, \"int8_gops\": %.1f, \"read_gbps\": %.2f}\n", isa.c_str(),
              FmaPeakGflops(isa, kLeastSeconds), Int8PeakGops(isa, kLeastSeconds),
              StreamGigabytesPerSecond(1, 4 * kLeastSeconds));
  return 0;
}

int Fail(const std::string& message) {
  std::fprintf(stderr, "kernels_bench: %s\n", message.c_str());
  return 1;
}

int Round(const CpuBackendOptions& options, const OpBenchOptions& bench) {
  const auto backend = MakeCpuBackend(options);
  if (!backend.ok()) return Fail(std::string(backend.status().message()));
  const double least = bench.least_seconds;
  std::printf(
      "{\"op\": \"peaks\", \"isa\": \"%s\", \"class\": \"%s\", \"gflops\": %.1f, \"int8_gops\": %.1f, "
      "\"stream_gbps\": %.2f, \"stream2_gbps\": %.2f}\n",
      options.isa.c_str(), (*backend)->numeric_class().c_str(), FmaPeakGflops(options.isa, least),
      Int8PeakGops(options.isa, least), StreamGigabytesPerSecond(1, 4 * least),
      StreamGigabytesPerSecond(2, 4 * least));
  BenchMatMuls(**backend, bench);
  BenchAttention(**backend, bench);
  BenchSmallOps(**backend, bench);
  return 0;
}

int Main(int argc, char** argv) {
  CpuBackendOptions options;
  options.isa = BestIsa();
  options.activations = ActivationType::kInt8;
  OpBenchOptions bench;
  bench.least_seconds = kLeastSeconds;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const bool more = i + 1 < argc;
    if (arg == "--peaks") return PrintPeaks();
    if (arg == "--quick") {
      bench = {true, kQuickSeconds};
    } else if (arg == "--isa" && more) {
      options.isa = argv[++i];
    } else if (arg == "--activations" && more) {
      options.activations = std::strcmp(argv[++i], "f32") == 0 ? ActivationType::kF32 : ActivationType::kInt8;
    } else {
      return Fail("unknown argument '" + arg + "'");
    }
  }
  return Round(options, bench);
}

}  // namespace
}  // namespace millrace::kernels

int main(int argc, char** argv) {
  return millrace::kernels::Main(argc, argv);
}
