// Tokens a second of one stage that holds the whole model, without RPC: prefill in chunks, and decodes of one
// and of several sequences together, each step with its sampled tokens. Prints the median of some runs of
// each, by the clock and by the calling thread's CPU time, which is what counts on a machine that others
// share and one thread works on.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "kernels/backend.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/device/cpu/host_devices.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/stage_model.h"

namespace millrace {
namespace {

constexpr uint32_t kBlockTokens = 16;

struct Flags {
  std::string model;
  std::string isa = "auto";
  std::string activations = "f32";
  int64_t threads = 1;
  int64_t shards = 1;
  int64_t prefill_tokens = 512;
  int64_t chunk_rows = 128;
  int64_t context = 64;
  int64_t steps = 32;
  int64_t runs = 5;
  std::vector<int64_t> sequences = {1, 16};

  void Declare(OptionSet& set) {
    set.AddString("isa", &isa, "NAME",
                  "auto, portable, avx2, avx512, avx512vnni; or reference: plain loops in float");
    set.AddString("activations", &activations, "f32|int8", "what quantised weights are multiplied by");
    set.AddInt("threads", &threads, 1, 256, "that work on each op of a shard");
    set.AddInt("tensor-parallel", &shards, 1, 64, "shards, each with threads of its own");
    set.AddInt("prefill-tokens", &prefill_tokens, 1, 1 << 20, "of the prompt that is timed");
    set.AddInt("chunk-rows", &chunk_rows, 1, 4096, "of a microbatch of the prompt");
    set.AddInt("context", &context, 1, 1 << 20, "tokens before the first decode");
    set.AddInt("steps", &steps, 1, 1 << 16, "decodes of each sequence in a run");
    set.AddInt("runs", &runs, 1, 1000, "of each measurement, taken in turn");
    set.AddIntList("sequences", &sequences, 1, 4096, "that decode together, one measurement for each number");
  }

  uint32_t SequenceTokens() const { return static_cast<uint32_t>(std::max(prefill_tokens, context + steps)); }
  uint32_t MaxSequences() const {
    return static_cast<uint32_t>(*std::max_element(sequences.begin(), sequences.end()));
  }
};

struct Bench {
  Flags flags;
  std::unique_ptr<GgufFile> file;
  HyperParameters shape;
  std::unique_ptr<DeviceGroup> devices;
  std::unique_ptr<StageModel> stage;
  std::unique_ptr<KvCache> cache;
  StageBatch batch;
  double load_seconds = 0;
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
  std::vector<double> collective;  // share of the time that shard 0 spent in collectives
  std::vector<double> wall;        // tokens/s of each run
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

absl::StatusOr<std::unique_ptr<kernels::Backend>> MakeBackend(const Flags& flags) {
  if (flags.isa == "reference") return kernels::MakeReferenceBackend();
  kernels::CpuBackendOptions options;
  options.isa = flags.isa;
  options.threads = static_cast<size_t>(flags.threads);
  if (flags.activations != "f32" && flags.activations != "int8") {
    return absl::InvalidArgumentError("--activations: expected f32 or int8");
  }
  if (flags.activations == "int8") options.activations = kernels::ActivationType::kInt8;
  return kernels::MakeCpuBackend(options);
}

uint32_t BlocksPerSequence(const Flags& flags) {
  return (flags.SequenceTokens() + kBlockTokens - 1) / kBlockTokens;
}

absl::StatusOr<Bench> Load(const Flags& flags) {
  Bench bench;
  bench.flags = flags;
  const Seconds begin = Seconds::Now();
  ASSIGN_OR_RETURN(bench.file, GgufFile::Open(flags.model));
  ASSIGN_OR_RETURN(bench.shape, ReadHyperParameters(*bench.file));
  if (bench.shape.context_tokens < flags.SequenceTokens()) {
    return absl::InvalidArgumentError(absl::StrCat("the model's context is ", bench.shape.context_tokens,
                                                   " tokens; this needs ", flags.SequenceTokens()));
  }
  std::vector<std::unique_ptr<kernels::Backend>> backends;
  for (int64_t i = 0; i < flags.shards; ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<kernels::Backend> backend, MakeBackend(flags));
    backends.push_back(std::move(backend));
  }
  bench.devices = std::make_unique<HostDevices>(std::move(backends));
  const StageLayout layout{0, bench.shape.num_layers, true, true};
  StageModelOptions options;
  options.layout = layout;
  options.max_rows = std::max(static_cast<uint32_t>(flags.chunk_rows), flags.MaxSequences());
  options.context_tokens = flags.SequenceTokens();
  ASSIGN_OR_RETURN(bench.stage, StageModel::Create(*bench.file, bench.shape, *bench.devices, options));
  bench.load_seconds = Seconds::Now().wall - begin.wall;
  KvCache::Shape cache;
  cache.num_layers = bench.shape.num_layers;
  cache.num_blocks = BlocksPerSequence(flags) * flags.MaxSequences();
  cache.block_tokens = kBlockTokens;
  cache.kv_heads = bench.shape.num_kv_heads;
  cache.head_size = bench.shape.head_size;
  for (const ShardUse& use : bench.stage->shards()) cache.shard_kv_heads.push_back(use.kv_heads);
  ASSIGN_OR_RETURN(bench.cache, KvCache::Create(cache, *bench.devices));
  return bench;
}

// Rows of sequence `index` from position `first` on, as one segment of the batch.
void AddSegment(Bench& bench, uint32_t index, uint32_t first, uint32_t rows, bool sample) {
  StageSegment& segment = bench.batch.segments.emplace_back();
  segment.sequence = SequenceId(index + 1);
  segment.first_position = first;
  const uint32_t blocks = BlocksPerSequence(bench.flags);
  for (uint32_t i = 0; i < blocks; ++i) segment.block_ids.push_back(index * blocks + i);
  for (uint32_t i = 0; i < rows; ++i) {
    segment.token_ids.push_back((index * 101 + first + i) * 7919 % bench.shape.vocabulary_size);
  }
  if (sample) segment.sampling.emplace().temperature = 0;
}

// Runs the batch, samples what asks for it, and empties it. Adds the time it took.
absl::Status Step(Bench& bench, Seconds& seconds) {
  const Seconds begin = Seconds::Now();
  ASSIGN_OR_RETURN(const std::shared_ptr<PooledBuffer> residual,
                   bench.stage->Run(bench.batch, nullptr, *bench.cache));
  RETURN_IF_ERROR(bench.stage->Sample(bench.batch, *residual).status());
  const Seconds end = Seconds::Now();
  seconds.wall += end.wall - begin.wall;
  seconds.cpu += end.cpu - begin.cpu;
  bench.batch.segments.clear();
  return absl::OkStatus();
}

absl::Status Prefill(Bench& bench, uint32_t index, uint32_t tokens, Seconds& seconds) {
  const uint32_t chunk = static_cast<uint32_t>(bench.flags.chunk_rows);
  for (uint32_t first = 0; first < tokens; first += chunk) {
    const uint32_t rows = std::min(chunk, tokens - first);
    AddSegment(bench, index, first, rows, first + rows == tokens);
    RETURN_IF_ERROR(Step(bench, seconds));
  }
  return absl::OkStatus();
}

absl::Status Decode(Bench& bench, uint32_t sequences, Rates& rates) {
  Seconds seconds;
  const int64_t collective = bench.stage->collective_ns();
  const uint32_t steps = static_cast<uint32_t>(bench.flags.steps);
  for (uint32_t step = 0; step < steps; ++step) {
    const uint32_t position = static_cast<uint32_t>(bench.flags.context) + step;
    for (uint32_t i = 0; i < sequences; ++i) AddSegment(bench, i, position, 1, true);
    RETURN_IF_ERROR(Step(bench, seconds));
  }
  rates.Add(sequences * steps, seconds);
  rates.collective.push_back(static_cast<double>(bench.stage->collective_ns() - collective) * 1e-9 /
                             seconds.wall);
  return absl::OkStatus();
}

void Print(const std::string& what, const Rates& rates) {
  printf("%s: %.1f tokens/s; by CPU time of one thread %.1f\n", what.c_str(), Median(rates.wall),
         Median(rates.cpu));
}

absl::Status Run(Bench& bench) {
  const Flags& flags = bench.flags;
  Seconds ignored;
  for (uint32_t i = 0; i < flags.MaxSequences(); ++i) {
    RETURN_IF_ERROR(Prefill(bench, i, static_cast<uint32_t>(flags.context), ignored));
  }
  Rates prefill;
  std::vector<Rates> decode(flags.sequences.size());
  for (int64_t run = 0; run < flags.runs; ++run) {
    Seconds seconds;
    RETURN_IF_ERROR(Prefill(bench, 0, static_cast<uint32_t>(flags.prefill_tokens), seconds));
    prefill.Add(static_cast<uint32_t>(flags.prefill_tokens), seconds);
    for (size_t i = 0; i < decode.size(); ++i) {
      RETURN_IF_ERROR(Decode(bench, static_cast<uint32_t>(flags.sequences[i]), decode[i]));
    }
  }
  Print(absl::StrCat("prefill, ", flags.prefill_tokens, " tokens in chunks of ", flags.chunk_rows), prefill);
  for (size_t i = 0; i < decode.size(); ++i) {
    Print(absl::StrCat("decode, ", flags.sequences[i], " sequences, context ", flags.context), decode[i]);
    if (flags.shards > 1) printf("  of it in collectives: %.1f %%\n", Median(decode[i].collective) * 100);
  }
  return absl::OkStatus();
}

absl::Status Main(const Flags& flags) {
  ASSIGN_OR_RETURN(Bench bench, Load(flags));
  printf("%s, %u layers, %ld shards of %ld threads, %s\n", bench.shape.name.c_str(), bench.shape.num_layers,
         static_cast<long>(flags.shards), static_cast<long>(flags.threads),
         bench.devices->numeric_class().c_str());
  printf("loaded in %.2f s, weights %.1f MB, activations %.1f MB\n", bench.load_seconds,
         static_cast<double>(bench.stage->weight_bytes()) / 1e6,
         static_cast<double>(bench.stage->activation_bytes()) / 1e6);
  return Run(bench);
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  millrace::Flags flags;
  millrace::OptionSet set("stage_bench", "MODEL.gguf [options]",
                          "Measures one stage that holds the whole model, without RPC.");
  flags.Declare(set);
  std::vector<std::string> positional;
  const auto outcome = set.Parse(std::vector<std::string>(argv + 1, argv + argc), &positional);
  if (outcome.ok() && *outcome == millrace::OptionSet::Outcome::kHelpShown) return 0;
  absl::Status status = outcome.status();
  if (status.ok() && positional.size() != 1) status = absl::InvalidArgumentError("name one model file");
  const bool usage = !status.ok();
  if (status.ok()) {
    flags.model = positional[0];
    status = millrace::Main(flags);
  }
  if (status.ok()) return 0;
  fprintf(stderr, "stage_bench: %s\n", std::string(status.message()).c_str());
  return usage ? 2 : 1;
}
