// A worker process: joins a coordinator, holds a stage, serves hops, and leaves.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/options.h"
#include "common/transport/health_server.h"
#include "common/transport/tls_files.h"
#include "worker/control/stage_backends.h"
#include "worker/stage/stage_compute.h"

namespace millrace {

struct WorkerOptions {
  std::string coordinator;  // host:port
  std::string listen;       // host:port; empty: the address towards the coordinator, any port
  std::string advertise;    // host other workers use; empty: the listening one
  std::string model;        // empty: the coordinator's path, or what it sends
  std::string model_cache;  // folder for what the coordinator sends; empty: DefaultModelCache
  std::optional<uint32_t> stage;
  TlsOptions tls;
  HealthFlags health;
  std::string join_secret_file;
  std::string join_secret;  // used if there is no file
  StageBackendOptions backends;
  std::string unix_sockets = "auto";  // or "off"
  uint64_t kv_memory_bytes = 0;       // 0: as StageHostOptions
  absl::Duration join_timeout = absl::Seconds(60);
  absl::Duration coordinator_timeout = absl::Seconds(10);
  std::string log_name;            // what goes before "worker N" in log lines; empty: nothing
  std::string profile = "auto";    // measure how fast this worker is; "off": placed as the others are
  StageComputeFactory make_stage;  // empty: StageModel::Create
};

// The flags of millrace-worker; `stage` is -1 for "any".
struct WorkerFlags {
  WorkerOptions options;
  int64_t stage = -1;
  TlsFlags tls;
  bool die_with_parent = false;
  // Flags of the machine: kernels, memory.
  void DeclareLocal(OptionSet& set);
  // Flags of where to join, which mpirun's ranks learn from each other instead.
  void DeclareJoin(OptionSet& set);
  // What the flags' own ranges do not say, of DeclareLocal's flags and of all. INVALID_ARGUMENT.
  absl::Status CheckLocal() const;
  absl::StatusOr<WorkerOptions> Finish() const;
};

// Runs until the coordinator ends the cluster (OK), a signal comes (OK), or something fails. Thread: main;
// call before other threads are started. Where the coordinator is silent for coordinator_timeout, the process
// ends from within, with a line in the log and kExitCoordinatorLost.
absl::Status RunWorker(const WorkerOptions& options);

}  // namespace millrace
