// A coordinator process: listens for clients and workers, keeps the ring turning, drains and leaves.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/numeric_choice.h"
#include "common/options.h"
#include "common/transport/health_server.h"
#include "common/transport/tls_files.h"
#include "coordinator/planner/stage_costs.h"

namespace millrace {

struct CoordinatorOptions {
  std::string model;
  uint32_t stages = 1;
  std::vector<int64_t> layers;  // per stage; empty: chosen by measured time
  std::string listen = "127.0.0.1:50051";
  std::string cluster_listen;  // empty: the same as listen
  std::string metrics;         // host:port of Prometheus text; empty: none
  TlsOptions tls;              // under TLS, cluster_listen is another port than listen
  HealthFlags health;
  bool push_model = false;  // send the model to workers that lack it
  std::string join_secret_file;
  std::string join_secret;  // used if there is no file
  std::string status_file;  // JSON with addresses and process id, written once it listens
  NumericChoice numeric;    // that all stages compute with
  uint32_t max_rows = 128;
  uint32_t max_in_flight = 0;                              // the most; at least stages
  absl::Duration inter_token_goal = absl::ZeroDuration();  // zero: none
  bool static_batching = false;
  Workload workload;  // layers are placed for
  uint32_t block_tokens = 16;
  bool prefix_cache = true;
  uint32_t context_tokens = 0;  // 0: the model's
  uint32_t max_running = 256;
  uint32_t max_queued = 1024;
  uint64_t max_input_bytes = uint64_t{1} << 20;
  absl::Duration grace = absl::Seconds(10);
  absl::Duration worker_timeout = absl::Seconds(3);
  absl::Duration replacement_wait = absl::Seconds(60);
};

// Enough for hops that take three times as long as a stage; the ring's queues have room for so many.
constexpr uint32_t DefaultMaxInFlight(uint32_t stages) {
  return 4 * stages + 4;
}

// The flags of millrace-coordinator.
class CoordinatorFlags {
 public:
  // `with_join_secret`: false under mpirun, which makes a secret for each run.
  void Declare(OptionSet& set, bool with_join_secret);
  // What the flags' own ranges do not say. INVALID_ARGUMENT.
  absl::StatusOr<CoordinatorOptions> Finish() const;

  int64_t stages = 0;  // 0: not said
  bool die_with_parent = false;

 private:
  absl::Status CheckTls(const CoordinatorOptions& result) const;

  TlsFlags tls_;
  bool under_mpi_ = false;  // its ranks have a cluster port of their own
  CoordinatorOptions options_;
  int64_t max_rows_ = 128;
  int64_t max_in_flight_ = 0;
  std::string batching_ = "inflight";
  std::string workload_;
  std::string activations_ = "int8";
  std::string kv_type_ = "auto";
  int64_t block_tokens_ = 16;
  int64_t context_tokens_ = 0;
  int64_t max_running_ = 256;
  int64_t max_queued_ = 1024;
};

// What the process listens on, with the ports it got.
struct CoordinatorAddresses {
  std::string listen;
  std::string cluster_listen;
  std::string metrics;  // empty: none
  std::string health;   // empty: none
};

// Runs until a signal comes (OK) or something fails. `on_listening` is called once, before any worker is
// waited for; an error ends the run. Thread: main; call before other threads are started.
absl::Status RunCoordinator(const CoordinatorOptions& options,
                            const std::function<absl::Status(const CoordinatorAddresses&)>& on_listening);

}  // namespace millrace
