// Tokens a second of one stage that holds the whole model: prefill of 512 tokens in chunks of
// 128 rows, and decode of single tokens behind them, each step with its sampled token. Prints the median of 5
// runs of each, by the clock and by the calling thread's CPU time, which is what counts on a machine that
// others share.
//
//   stage_bench MODEL.gguf [ISA [THREADS]]        ISA: auto (default), portable, avx2, avx512, avx512vnni,
//   reference
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "common/status_macros.h"
#include "kernels/backend.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/stage_model.h"

namespace millrace {
namespace {

constexpr uint32_t kRuns = 5;
constexpr uint32_t kPrefillTokens = 512;
constexpr uint32_t kChunkRows = 128;
constexpr uint32_t kDecodeTokens = 32;
constexpr uint32_t kBlockTokens = 16;
constexpr uint32_t kContextTokens = kPrefillTokens + kDecodeTokens;

struct Bench {
  std::unique_ptr<GgufFile> file;
  HyperParameters shape;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<StageModel> stage;
  std::unique_ptr<KvCache> cache;
  StageBatch batch;
};

// Of a step: by the clock, and by the CPU time of this thread.
struct Seconds {
  double wall = 0;
  double cpu = 0;

  static Seconds Now() {
    timespec cpu;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now().time_since_epoch();
    return {wall.count(), static_cast<double>(cpu.tv_sec) + static_cast<double>(cpu.tv_nsec) * 1e-9};
  }
};

struct Rates {
  std::vector<double> wall;  // tokens/s of each run
  std::vector<double> cpu;

  void Add(uint32_t tokens, const Seconds& seconds) {
    wall.push_back(tokens / seconds.wall);
    cpu.push_back(tokens / seconds.cpu);
  }
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::StatusOr<std::unique_ptr<kernels::Backend>> MakeBackend(const std::string& isa, size_t threads) {
  if (isa == "reference") return kernels::MakeReferenceBackend();
  kernels::CpuBackendOptions options;
  options.isa = isa;
  options.threads = threads;
  return kernels::MakeCpuBackend(options);
}

absl::StatusOr<Bench> Load(const std::string& path, const std::string& isa, size_t threads) {
  Bench bench;
  ASSIGN_OR_RETURN(bench.file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(bench.shape, ReadHyperParameters(*bench.file));
  if (bench.shape.context_tokens < kContextTokens) {
    return absl::InvalidArgumentError("the model's context is too short for this benchmark");
  }
  ASSIGN_OR_RETURN(bench.backend, MakeBackend(isa, threads));
  const StageLayout layout{0, bench.shape.num_layers, true, true};
  ASSIGN_OR_RETURN(bench.stage, StageModel::Create(*bench.file, bench.shape, *bench.backend,
                                                   {layout, kChunkRows, kContextTokens}));
  KvCache::Shape cache;
  cache.num_layers = bench.shape.num_layers;
  cache.num_blocks = (kContextTokens + kBlockTokens - 1) / kBlockTokens;
  cache.block_tokens = kBlockTokens;
  cache.kv_heads = bench.shape.num_kv_heads;
  cache.head_size = bench.shape.head_size;
  ASSIGN_OR_RETURN(bench.cache, KvCache::Create(cache));
  StageSegment& segment = bench.batch.segments.emplace_back();
  segment.sequence = SequenceId(1);
  for (uint32_t i = 0; i < cache.num_blocks; ++i) segment.block_ids.push_back(i);
  return bench;
}

// Rows from `first` on; samples greedily if asked. Adds the time it took.
void Step(Bench& bench, uint32_t first, uint32_t rows, bool sample, Seconds& seconds) {
  StageSegment& segment = bench.batch.segments[0];
  segment.first_position = first;
  segment.token_ids.resize(rows);
  for (uint32_t i = 0; i < rows; ++i) segment.token_ids[i] = (first + i) * 7919 % bench.shape.vocabulary_size;
  segment.sampling.reset();
  if (sample) segment.sampling.emplace().temperature = 0;
  const Seconds begin = Seconds::Now();
  const std::shared_ptr<PooledBuffer> residual = bench.stage->Run(bench.batch, nullptr, *bench.cache);
  if (sample) bench.stage->Sample(bench.batch, *residual);
  const Seconds end = Seconds::Now();
  seconds.wall += end.wall - begin.wall;
  seconds.cpu += end.cpu - begin.cpu;
}

void Prefill(Bench& bench, Rates& rates) {
  Seconds seconds;
  for (uint32_t first = 0; first < kPrefillTokens; first += kChunkRows) {
    Step(bench, first, kChunkRows, first + kChunkRows == kPrefillTokens, seconds);
  }
  rates.Add(kPrefillTokens, seconds);
}

void Decode(Bench& bench, Rates& rates) {
  Seconds seconds;
  for (uint32_t i = 0; i < kDecodeTokens; ++i) Step(bench, kPrefillTokens + i, 1, true, seconds);
  rates.Add(kDecodeTokens, seconds);
}

void Print(const char* what, const Rates& rates) {
  printf("%s: %.1f tokens/s; by CPU time %.1f\n", what, Median(rates.wall), Median(rates.cpu));
}

int Main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    fprintf(stderr, "usage: stage_bench MODEL.gguf [ISA [THREADS]]\n");
    return 2;
  }
  absl::StatusOr<Bench> bench =
      Load(argv[1], argc > 2 ? argv[2] : "auto", argc > 3 ? strtoul(argv[3], nullptr, 10) : 1);
  if (!bench.ok()) {
    fprintf(stderr, "stage_bench: %s\n", std::string(bench.status().message()).c_str());
    return 1;
  }
  Rates prefill;
  Rates decode;
  for (uint32_t run = 0; run < kRuns; ++run) {
    Prefill(*bench, prefill);
    Decode(*bench, decode);
  }
  printf("%s, %u layers, %zu threads, %s\n", bench->shape.name.c_str(), bench->shape.num_layers,
         bench->backend->threads(), bench->backend->numeric_class().c_str());
  printf("weights %.1f MB, activations %.1f MB\n", static_cast<double>(bench->stage->weight_bytes()) / 1e6,
         static_cast<double>(bench->stage->activation_bytes()) / 1e6);
  Print("prefill, 512 tokens in chunks of 128", prefill);
  Print("decode at context 512", decode);
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  return millrace::Main(argc, argv);
}
