#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "worker/control/backend_choice.h"
#include "worker/control/worker.h"
#include "worker/stage/shard_layout.h"

namespace millrace {
namespace {

constexpr int64_t kMaxThreads = 1024;
constexpr int64_t kMaxCudaDevice = 1023;
constexpr double kMaxWatchdogSeconds = 86400;

// Set by Open MPI for each process that it starts.
int64_t LocalRankOfMpi() {
  const char* text = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  int64_t rank = 0;
  return text != nullptr && absl::SimpleAtoi(text, &rank) && rank >= 0 && rank <= kMaxCudaDevice ? rank : 0;
}

}  // namespace

void WorkerFlags::DeclareLocal(OptionSet& set) {
  set.AddString("backend", &options.backends.backend, "auto|cpu|cuda",
                "what computes; auto: CUDA devices where they serve, otherwise the CPU; says what it found");
  set.AddIntList("devices", &options.backends.cuda_devices, 0, kMaxCudaDevice,
                 "the CUDA device of each shard, as the runtime counts; default: worker r of a machine takes "
                 "the next --tensor-parallel devices after those of r others");
  set.AddString(
      "collective", &options.backends.collective, "ordered|allreduce",
      "how CUDA shards add their sums: ordered: the same bits for any number of shards; allreduce: by "
      "ncclAllReduce");
  set.AddDuration("watchdog", &options.backends.watchdog,
                  "how long a microbatch may take on a CUDA device before the worker ends with exit code 3");
  set.AddString("isa", &options.backends.isa, "NAME",
                "instruction set of the CPU kernels: auto, portable, avx2, avx512, avx512vnni");
  set.AddInt("tensor-parallel", &options.backends.shards, 1, kMaxSegments,
             "cut this worker's stage into so many shards, each with threads or a CUDA device of its own");
  set.AddInt("threads", &options.backends.threads, 0, kMaxThreads,
             "threads that share each op; 0: the cores this worker may use, divided by the workers of this "
             "machine that may use them too");
  set.AddBool("pin-threads", &options.backends.pin_threads,
              "confine each thread to one core of this worker's share; for machines that do nothing else");
  set.AddBytes("kv-memory", &options.kv_memory_bytes,
               "most memory for a worker's KV cache; 0: 1GiB of host memory, or what is free of a device's");
  set.AddString(
      "profile", &options.profile, "auto|off",
      "auto: measure how fast this worker is, so that layers are placed by time; off: by their size");
  set.AddString("unix-sockets", &options.unix_sockets, "auto|off",
                "auto: hops between processes of one host go by Unix sockets; off: all by TCP");
  set.AddString(
      "model-cache", &options.model_cache, "DIR",
      "where a worker without the model file keeps what a coordinator with --push-model sends it; "
      "default: millrace/models under XDG_CACHE_HOME or ~/.cache; if given, it is used even where the "
      "coordinator's path exists");
  set.AddDuration("join-timeout", &options.join_timeout,
                  "how long a worker waits for a coordinator that takes it");
  set.AddDuration(
      "coordinator-timeout", &options.coordinator_timeout,
      "silence of the coordinator after which a worker ends with exit code 4; it answers every 500ms");
}

void WorkerFlags::DeclareJoin(OptionSet& set) {
  set.AddString("coordinator", &options.coordinator, "HOST:PORT",
                "the coordinator's --cluster-listen address");
  set.AddString(
      "listen", &options.listen, "HOST:PORT",
      "where other workers send activations; default: this host's address towards the coordinator, any port");
  set.AddString("advertise", &options.advertise, "HOST",
                "the name or address other workers use for this host; default: the one listened on");
  set.AddString("model", &options.model, "PATH",
                "the model file on this host; default: the coordinator's path, or what it sends");
  set.AddBool("die-with-parent", &die_with_parent, kDieWithParentHelp);
  set.AddInt("stage", &stage, -1, 1 << 20, "the stage to hold; -1: the first that is free");
  options.health.Declare(set);
  tls.DeclareServer(set, /*with_clients=*/false);
  set.AddString("join-secret-file", &options.join_secret_file, "FILE",
                "one line that coordinator and workers share");
}

absl::Status WorkerFlags::CheckLocal() const {
  if (options.profile != "auto" && options.profile != "off") {
    return absl::InvalidArgumentError(
        absl::StrCat("--profile: '", options.profile, "' is neither auto nor off"));
  }
  if (options.unix_sockets != "auto" && options.unix_sockets != "off") {
    return absl::InvalidArgumentError(
        absl::StrCat("--unix-sockets: '", options.unix_sockets, "' is not auto or off"));
  }
  if (options.coordinator_timeout < absl::Seconds(2)) {
    return absl::InvalidArgumentError(
        "--coordinator-timeout: at least 2s; the coordinator answers every 500ms");
  }
  RETURN_IF_ERROR(CheckBackendFlags(options.backends));
  if (options.backends.watchdog <= absl::ZeroDuration() ||
      options.backends.watchdog > absl::Seconds(kMaxWatchdogSeconds)) {
    return absl::InvalidArgumentError("--watchdog: a time above 0 and of a day at most is needed");
  }
  const absl::Status isa = CpuKernelsName(options.backends.isa).status();
  if (isa.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--isa: ", isa.message()));
}

absl::StatusOr<WorkerOptions> WorkerFlags::Finish() const {
  WorkerOptions result = options;
  if (result.coordinator.empty()) return absl::InvalidArgumentError("--coordinator HOST:PORT is required");
  const absl::StatusOr<HostPort> address = ParseHostPort(result.coordinator);
  if (!address.ok())
    return absl::InvalidArgumentError(absl::StrCat("--coordinator: ", address.status().message()));
  if (!result.listen.empty()) {
    const absl::StatusOr<HostPort> listen = ParseHostPort(result.listen);
    if (!listen.ok())
      return absl::InvalidArgumentError(absl::StrCat("--listen: ", listen.status().message()));
  }
  RETURN_IF_ERROR(result.health.Check());
  ASSIGN_OR_RETURN(result.tls, tls.Finish());
  RETURN_IF_ERROR(CheckLocal());
  result.backends.local_rank = LocalRankOfMpi();
  if (stage >= 0) result.stage = static_cast<uint32_t>(stage);
  return result;
}

}  // namespace millrace
