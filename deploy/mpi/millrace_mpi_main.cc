// millrace-mpi: a whole cluster under mpirun. Rank 0 is the coordinator, every other rank a worker.
#include <mpi.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/options.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "common/transport/secret.h"
#include "coordinator/coordinator.h"
#include "deploy/mpi/preflight.h"
#include "deploy/mpi/rendezvous.h"
#include "worker/control/coordinator_lease.h"
#include "worker/control/worker.h"

namespace millrace {
namespace {

struct Ranks {
  int rank = 0;
  int size = 1;
  bool one_host = true;
  int worker_on_host = 0;  // number of this rank among the workers of its host
};

Ranks JoinMpi(int* argc, char*** argv) {
  // Open MPI starts threads of its own, which must not take the stop signals.
  BlockStopSignals();
  MPI_Init(argc, argv);
  Ranks ranks;
  MPI_Comm_rank(MPI_COMM_WORLD, &ranks.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks.size);
  MPI_Comm host;
  int on_host = 0, rank_on_host = 0;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
  MPI_Comm_size(host, &on_host);
  MPI_Comm_rank(host, &rank_on_host);
  // The first rank of a host tells whether it is the coordinator, which takes no devices.
  int first = ranks.rank;
  MPI_Bcast(&first, 1, MPI_INT, 0, host);
  MPI_Comm_free(&host);
  ranks.one_host = on_host == ranks.size;
  ranks.worker_on_host = std::max(0, rank_on_host - (first == 0 ? 1 : 0));
  return ranks;
}

// Rank 0 gives the text, the others get it. The last thing MPI is used for.
std::string ShareAndLeaveMpi(std::string text) {
  unsigned long size = text.size();
  MPI_Bcast(&size, 1, MPI_UNSIGNED_LONG, 0, MPI_COMM_WORLD);
  text.resize(size);
  MPI_Bcast(text.data(), static_cast<int>(size), MPI_CHAR, 0, MPI_COMM_WORLD);
  MPI_Finalize();
  return text;
}

struct MpiFlags {
  CoordinatorFlags coordinator;
  WorkerFlags worker;
  std::string secret_file, interface, preflight;
  bool judge = false;
};

absl::Status RunRankZero(CoordinatorOptions options, const Ranks& ranks, const MpiFlags& flags) {
  SetLogName("rank 0, coordinator");
  Invitation invitation;
  invitation.secret = MakeSecret();
  options.join_secret = invitation.secret;
  absl::Status status;
  if (options.cluster_listen.empty()) {
    options.cluster_listen = ranks.one_host ? "127.0.0.1:0" : "0.0.0.0:0";
    if (!flags.interface.empty()) {
      const absl::StatusOr<std::string> address = AddressInside(flags.interface);
      if (address.ok()) options.cluster_listen = HostPort{*address, 0}.ToString();
      status = address.status();
    }
  }
  bool invited = false;
  if (status.ok()) {
    status = RunCoordinator(options, [&](const CoordinatorAddresses& addresses) -> absl::Status {
      if (!flags.secret_file.empty()) RETURN_IF_ERROR(WriteSecretFile(flags.secret_file, invitation.secret));
      invitation.addresses = ReachableAddresses(addresses.cluster_listen);
      invited = true;
      ShareAndLeaveMpi(EncodeInvitation(invitation));
      return absl::OkStatus();
    });
  }
  if (!invited) {
    invitation.error = status.ok() ? "stopped" : "see rank 0";
    ShareAndLeaveMpi(EncodeInvitation(invitation));
  }
  return status;
}

absl::Status RunWorkerRank(const MpiFlags& flags, const Ranks& ranks, uint32_t stages) {
  WorkerOptions options = flags.worker.options;
  const uint32_t stage = static_cast<uint32_t>(ranks.rank - 1);
  options.log_name =
      absl::StrCat("rank ", ranks.rank, stage < stages ? absl::StrCat(", stage ", stage) : ", spare");
  SetLogName(options.log_name);
  ASSIGN_OR_RETURN(const Invitation invitation, DecodeInvitation(ShareAndLeaveMpi("")));
  // Rank 0 has said what is wrong; once is enough.
  if (!invitation.error.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(options.coordinator, FirstThatAnswers(invitation.addresses, options.join_timeout));
  options.join_secret = invitation.secret;
  if (!flags.interface.empty()) {
    ASSIGN_OR_RETURN(const std::string address, AddressInside(flags.interface));
    options.listen = HostPort{address, 0}.ToString();
  }
  if (stage < stages) options.stage = stage;
  options.backends.local_rank = ranks.worker_on_host;
  return RunWorker(options);
}

absl::StatusOr<OptionSet::Outcome> ParseFlags(int argc, char** argv, MpiFlags& flags) {
  OptionSet set("millrace-mpi", "--model M.gguf [options]   (under mpirun; see deploy/mpirun.sh)",
                "A whole cluster under mpirun: rank 0 is the coordinator, every other rank a worker.");
  flags.coordinator.Declare(set, /*with_join_secret=*/false);
  flags.worker.DeclareLocal(set);
  set.AddString("join-secret-file-out", &flags.secret_file, "FILE",
                "rank 0 writes this run's secret there, so that a worker started by hand can join");
  set.AddString(
      "interface", &flags.interface, "IF|CIDR",
      "the network between the ranks, by its name or as 10.0.0.0/24: coordinator and hops listen only "
      "there; default: where the routes lead");
  set.AddString(
      "preflight", &flags.preflight, "FIRST:COUNT:SIZE",
      "only check whether this host can run these ranks of all, and report it (deploy/mpirun.sh does)");
  set.AddBool("preflight-judge", &flags.judge,
              "only compare what hosts reported, from standard input (deploy/mpirun.sh does)");
  return set.Parse(std::vector<std::string>(argv + 1, argv + argc), nullptr);
}

int Preflight(const MpiFlags& flags, const CoordinatorOptions& options) {
  const absl::StatusOr<RankRange> ranks = ParseRankRange(flags.preflight);
  if (!ranks.ok()) {
    std::fprintf(stderr, "millrace-mpi: %s\n", std::string(ranks.status().message()).c_str());
    return kExitUsage;
  }
  PreflightTask task;
  task.ranks = *ranks;
  task.model = options.model;
  task.model_is_sent = options.push_model;
  task.layers = options.layers;
  const bool default_stages = flags.coordinator.stages == 0 && options.layers.empty();
  task.stages = default_stages ? std::max(1u, ranks->size - 1) : options.stages;
  for (const std::string& listen :
       {options.listen, options.cluster_listen, options.metrics, options.health.listen}) {
    if (!listen.empty()) task.listens.push_back(listen);
  }
  task.interface = flags.interface;
  task.tls = options.tls;
  const std::string& backend = flags.worker.options.backends.backend;
  task.host_memory = backend == "cpu" || (backend == "auto" && access("/dev/nvidiactl", F_OK) != 0);
  task.context_tokens = options.context_tokens;
  task.max_rows = options.max_rows;
  task.kv_memory_bytes = flags.worker.options.kv_memory_bytes;
  std::fputs(PreflightReport(task).c_str(), stdout);
  return kExitOk;
}

int PreflightJudge() {
  const std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
  const absl::StatusOr<std::vector<HostAnswer>> answers = ReadHostAnswers(text);
  if (!answers.ok()) {
    std::fprintf(stderr, "millrace-mpi: %s\n", std::string(answers.status().message()).c_str());
    return kExitUsage;
  }
  const Verdict verdict = JudgeHosts(*answers);
  for (const std::string& failure : verdict.failures)
    std::fprintf(stderr, "preflight: %s\n", failure.c_str());
  if (!verdict.summary.empty()) std::fprintf(stderr, "preflight: %s\n", verdict.summary.c_str());
  return verdict.failures.empty() ? kExitOk : kExitFailure;
}

// mpirun hands SIGUSR1 on to every rank, also on hosts whose processes the caller cannot signal: to the
// coordinator it means SIGTERM, which ends the workers, too.
void TakeSharedStopSignal(bool coordinator) {
  struct sigaction action = {};
  action.sa_flags = SA_RESTART;
  action.sa_handler = coordinator ? +[](int) { kill(getpid(), SIGTERM); } : SIG_IGN;
  sigaction(SIGUSR1, &action, nullptr);
}

int Main(int argc, char** argv) {
  // mpirun may be killed without a word; its ranks must not stay behind.
  DieWithParent();
  const bool speaks = RankInEnvironment([](const char* name) { return std::getenv(name); }).value_or(0) == 0;
  TakeSharedStopSignal(speaks);
  if (!speaks && argc == 2 && (std::string(argv[1]) == "--help" || std::string(argv[1]) == "--version"))
    return kExitOk;
  MpiFlags flags;
  const auto outcome = ParseFlags(argc, argv, flags);
  if (outcome.ok() && *outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  if (outcome.ok() && flags.judge) return PreflightJudge();
  absl::StatusOr<CoordinatorOptions> options = outcome.ok() ? flags.coordinator.Finish() : outcome.status();
  if (const absl::Status local = flags.worker.CheckLocal(); options.ok() && !local.ok()) options = local;
  if (!options.ok()) {
    if (speaks) std::fprintf(stderr, "millrace-mpi: %s\n", std::string(options.status().message()).c_str());
    return kExitUsage;
  }
  if (!flags.preflight.empty()) return Preflight(flags, *options);
  const Ranks ranks = JoinMpi(&argc, &argv);
  const uint32_t workers = static_cast<uint32_t>(ranks.size - 1);
  const bool default_stages = flags.coordinator.stages == 0 && options->layers.empty();
  if (default_stages && workers > 0) {
    options->stages = workers;
    options->max_in_flight = std::max(options->max_in_flight, DefaultMaxInFlight(workers));
  }
  if (workers < options->stages || workers == 0) {
    if (ranks.rank == 0) {
      std::fprintf(stderr,
                   "millrace-mpi: %u stages need %u ranks (one is the coordinator), mpirun started %d\n",
                   options->stages, options->stages + 1, ranks.size);
    }
    MPI_Finalize();
    return kExitUsage;
  }
  flags.worker.options.tls = options->tls;
  const absl::Status status =
      ranks.rank == 0 ? RunRankZero(*options, ranks, flags) : RunWorkerRank(flags, ranks, options->stages);
  if (!status.ok()) LogError(status.message());
  return WorkerExitCode(status);
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  return millrace::Main(argc, argv);
}
