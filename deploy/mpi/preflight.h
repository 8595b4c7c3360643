// What is checked on every host before a cluster is started over several of them: deploy/mpirun.sh runs
// `millrace-mpi --preflight` once on each, and one `millrace-mpi --preflight-judge` over what they all said.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/transport/tls_files.h"

namespace millrace {

// The ranks that one host is to run, out of `size`; rank 0 is the coordinator.
struct RankRange {
  uint32_t first = 0;
  uint32_t count = 1;
  uint32_t size = 1;
};
// "FIRST:COUNT:SIZE". INVALID_ARGUMENT: anything else, or ranks beyond the size.
absl::StatusOr<RankRange> ParseRankRange(absl::string_view text);

struct PreflightTask {
  RankRange ranks;
  std::string model;
  bool model_is_sent = false;  // to hosts that lack it, by --push-model; then only rank 0's host needs it
  uint32_t stages = 1;
  std::vector<int64_t> layers;       // of each stage, if they were named
  std::vector<std::string> listens;  // host:port that rank 0 opens; port 0 needs no check
  std::string interface;             // as in AddressInside; empty: any
  bool host_memory = true;           // stages are held in the host's memory, not in a device's
  uint32_t context_tokens = 0;       // 0: the model's
  uint32_t max_rows = 128;
  uint64_t kv_memory_bytes = 0;  // 0: not said
  TlsOptions tls;
};

// What this host says of itself: lines for ReadHostReport. Reads the model's header and 4 KiB of each tensor,
// and all of this program's file. Thread: any.
std::string PreflightReport(const PreflightTask& task);

// A host's memory that the stages of `ranks` need at least: weights, working memory, and KV cache for one
// sequence, but no more than --kv-memory. INVALID_ARGUMENT or NOT_FOUND: the model cannot be read, or not cut
// like that.
absl::StatusOr<uint64_t> StageMemoryBytes(const PreflightTask& task);

// What was asked on one host, and what came of it.
struct HostAnswer {
  std::string host;
  absl::Time began, ended;  // by the asking machine's clock
  int exit_code = 0;        // 124: it did not answer in time
  std::vector<std::string> output;
};
// Reads blocks of a line "host NAME BEGAN ENDED CODE" (times in seconds since the epoch) and the output, each
// line after a tab. INVALID_ARGUMENT: another form.
absl::StatusOr<std::vector<HostAnswer>> ReadHostAnswers(absl::string_view text);

struct Verdict {
  std::vector<std::string>
      failures;         // one line for each thing that is wrong, with the host's name; empty: go
  std::string summary;  // one line for when nothing is
};
// Hosts are held to the first one that reported: same version, same build, same model. Pure.
Verdict JudgeHosts(const std::vector<HostAnswer>& answers);

inline constexpr absl::Duration kMaxClockSkew = absl::Seconds(5);

}  // namespace millrace
