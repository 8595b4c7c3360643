#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/process.h"
#include "common/transport/channels.h"
#include "coordinator/coordinator.h"

namespace millrace {

void CoordinatorFlags::Declare(OptionSet& set, bool with_join_secret) {
  set.AddString("model", &options_.model, "PATH", "the model: a GGUF file of the llama architecture");
  set.AddInt("stages", &stages, 1, 65536,
             with_join_secret
                 ? "how many pipeline stages, one worker each; default: as many as --layers names, or 1"
                 : "how many pipeline stages, one worker each; default: the ranks but one");
  set.AddIntList("layers", &options_.layers, 1, 65536,
                 "layers of each stage, as 10,20; default: balanced by measured time");
  set.AddString("listen", &options_.listen, "HOST:PORT", "where clients call; port 0: any free one");
  set.AddString("cluster-listen", &options_.cluster_listen, "HOST:PORT",
                with_join_secret
                    ? "where workers join; default: the same as --listen"
                    : "where workers join; default: loopback on one host, all interfaces on several");
  set.AddString("metrics", &options_.metrics, "HOST:PORT",
                "answer Prometheus at http://HOST:PORT/metrics; port 0: any free one; default: off");
  set.AddBool(
      "push-model", &options_.push_model,
      "send workers that do not have the model file what their stages need of it; reads the whole file "
      "at the start");
  options_.health.Declare(set);
  tls_.DeclareServer(set, /*with_clients=*/true);
  under_mpi_ = !with_join_secret;
  if (with_join_secret) {
    set.AddBool("die-with-parent", &die_with_parent, kDieWithParentHelp);
    set.AddString("join-secret-file", &options_.join_secret_file, "FILE",
                  "one line that coordinator and workers share");
  }
  set.AddString("status-file", &options_.status_file, "FILE",
                "write addresses and process id there as JSON once it listens");
  set.AddString(
      "activations", &activations_, "int8|f32",
      "what rows are multiplied with quantised weights as, on all workers: int8 is several times as "
      "fast, f32 exact");
  set.AddString(
      "kv-type", &kv_type_, "auto|f32|f16|int8",
      "how keys and values are kept, on all workers; auto: f16 with int8 activations, f32 with f32");
  set.AddInt("max-rows", &max_rows_, 1, 4096, "tokens in one microbatch");
  set.AddInt("max-in-flight", &max_in_flight_, 0, 1024,
             "most microbatches in the ring at once; what keeps it full is measured; fewer than the stages "
             "leave some "
             "idle, for comparisons only; 0: 4 x stages + 4");
  set.AddDuration(
      "inter-token-goal", &options_.inter_token_goal,
      "prefill beside decodes is cut so that tokens follow each other within this time; 0s: no goal");
  set.AddString("batching", &batching_, "inflight|static",
                "static: requests join only when none is running; there for comparisons, it is slower");
  set.AddString(
      "workload", &workload_, "PROMPT:OUTPUT",
      "tokens of a usual prompt and answer, such as 500:100; layers are placed so that stages take the "
      "same time for it; empty: for answers only");
  set.AddInt("kv-block-tokens", &block_tokens_, 16, 1024,
             "tokens in one block of KV cache, a multiple of 16");
  set.AddBool("prefix-cache", &options_.prefix_cache,
              "keep the KV cache of prompts and answers for requests that begin the same");
  set.AddInt("context", &context_tokens_, 0, 1 << 24,
             "longest prompt and answer together, in tokens; 0: the model's");
  set.AddInt("max-running", &max_running_, 1, 65536, "requests in progress at once");
  set.AddInt("max-queued", &max_queued_, 1, 1 << 20, "requests waiting; more are refused");
  set.AddBytes("max-input", &options_.max_input_bytes, "largest input of a request");
  set.AddDuration("grace", &options_.grace, "after SIGTERM: how long running requests may take to finish");
  set.AddDuration("worker-timeout", &options_.worker_timeout, "silence after which a worker counts as lost");
  set.AddDuration("replacement-wait", &options_.replacement_wait,
                  "after a drained worker has left: how long requests are held until another has its stage");
}

namespace {

absl::StatusOr<Workload> ParseWorkload(const std::string& text) {
  Workload workload;
  if (text.empty()) return workload;
  constexpr uint32_t kMost = 1 << 20;
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits(':', 1));
  if (!absl::SimpleAtoi(parts.first, &workload.prompt_tokens) ||
      !absl::SimpleAtoi(parts.second, &workload.output_tokens) || workload.prompt_tokens > kMost ||
      workload.output_tokens < 1 || workload.output_tokens > kMost) {
    return absl::InvalidArgumentError(
        absl::StrCat("--workload: '", text, "' is not PROMPT:OUTPUT in tokens, such as 500:100"));
  }
  return workload;
}

absl::StatusOr<NumericChoice> ParseNumericChoice(const std::string& activations, const std::string& kv_type) {
  const std::optional<ActivationType> type = ParseActivationType(activations);
  if (!type.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("--activations: '", activations, "' is not int8 or f32"));
  }
  if (kv_type == "auto") {
    return NumericChoice{*type, *type == ActivationType::kInt8 ? KvType::kF16 : KvType::kF32};
  }
  const std::optional<KvType> kv = ParseKvType(kv_type);
  if (!kv.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-type: '", kv_type, "' is not auto, f32, f16 or int8"));
  }
  return NumericChoice{*type, *kv};
}

}  // namespace

// Workers must show certificates, and clients need not: that takes two ports.
absl::Status CoordinatorFlags::CheckTls(const CoordinatorOptions& result) const {
  if (!result.tls.on() || (under_mpi_ && result.cluster_listen.empty())) return absl::OkStatus();
  if (result.cluster_listen.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert needs --cluster-listen HOST:PORT: under TLS workers join at another port than --listen");
  }
  const absl::StatusOr<HostPort> listen = ParseHostPort(result.listen);
  if (result.cluster_listen != result.listen || (listen.ok() && listen->port == 0)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--cluster-listen: ", result.cluster_listen,
                   " is --listen too; under TLS workers join at another port than clients"));
}

absl::StatusOr<CoordinatorOptions> CoordinatorFlags::Finish() const {
  CoordinatorOptions result = options_;
  if (result.model.empty()) return absl::InvalidArgumentError("--model PATH is required");
  for (const auto& [flag, value] : {std::pair{"--listen", &result.listen},
                                    {"--cluster-listen", &result.cluster_listen},
                                    {"--metrics", &result.metrics}}) {
    if (value->empty() && flag != std::string("--listen")) continue;
    const absl::StatusOr<HostPort> address = ParseHostPort(*value);
    if (!address.ok())
      return absl::InvalidArgumentError(absl::StrCat(flag, ": ", address.status().message()));
  }
  const absl::StatusOr<TlsOptions> tls = tls_.Finish();
  if (!tls.ok()) return tls.status();
  result.tls = *tls;
  if (const absl::Status ports = CheckTls(result); !ports.ok()) return ports;
  if (const absl::Status health = result.health.Check(); !health.ok()) return health;
  if (block_tokens_ % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-block-tokens: ", block_tokens_, " is not a multiple of 16"));
  }
  if (result.worker_timeout < absl::Seconds(1)) {
    return absl::InvalidArgumentError("--worker-timeout: at least 1s; workers report every 500ms");
  }
  if (result.replacement_wait < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--replacement-wait: at least 0s; 0s: requests are not held");
  }
  if (result.max_input_bytes > (uint64_t{64} << 20)) {
    return absl::InvalidArgumentError("--max-input: at most 64MiB");
  }
  if (batching_ != "inflight" && batching_ != "static") {
    return absl::InvalidArgumentError(
        absl::StrCat("--batching: '", batching_, "' is not inflight or static"));
  }
  result.static_batching = batching_ == "static";
  const absl::StatusOr<NumericChoice> numeric = ParseNumericChoice(activations_, kv_type_);
  if (!numeric.ok()) return numeric.status();
  result.numeric = *numeric;
  const absl::StatusOr<Workload> workload = ParseWorkload(workload_);
  if (!workload.ok()) return workload.status();
  result.workload = *workload;
  if (result.inter_token_goal < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--inter-token-goal: at least 0s");
  }
  result.stages = stages == 0 ? (result.layers.empty() ? 1 : static_cast<uint32_t>(result.layers.size()))
                              : static_cast<uint32_t>(stages);
  result.max_rows = static_cast<uint32_t>(max_rows_);
  result.max_in_flight =
      max_in_flight_ == 0 ? DefaultMaxInFlight(result.stages) : static_cast<uint32_t>(max_in_flight_);
  result.block_tokens = static_cast<uint32_t>(block_tokens_);
  result.context_tokens = static_cast<uint32_t>(context_tokens_);
  result.max_running = static_cast<uint32_t>(max_running_);
  result.max_queued = static_cast<uint32_t>(max_queued_);
  return result;
}

}  // namespace millrace
