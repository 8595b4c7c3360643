// millrace-mpi: a whole cluster under mpirun. Rank 0 is the coordinator, every other rank a worker.
#include <mpi.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
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
#include "deploy/mpi/rendezvous.h"
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

absl::Status RunRankZero(CoordinatorOptions options, const Ranks& ranks, const std::string& secret_file) {
  SetLogName("coordinator");
  Invitation invitation;
  invitation.secret = MakeSecret();
  options.join_secret = invitation.secret;
  if (options.cluster_listen.empty()) options.cluster_listen = ranks.one_host ? "127.0.0.1:0" : "0.0.0.0:0";
  bool invited = false;
  const absl::Status status =
      RunCoordinator(options, [&](const CoordinatorAddresses& addresses) -> absl::Status {
        if (!secret_file.empty()) RETURN_IF_ERROR(WriteSecretFile(secret_file, invitation.secret));
        invitation.addresses = ReachableAddresses(addresses.cluster_listen);
        invited = true;
        ShareAndLeaveMpi(EncodeInvitation(invitation));
        return absl::OkStatus();
      });
  if (!invited) {
    invitation.error = status.ok() ? "stopped" : "see rank 0";
    ShareAndLeaveMpi(EncodeInvitation(invitation));
  }
  return status;
}

absl::Status RunWorkerRank(WorkerOptions options, const Ranks& ranks, uint32_t stages) {
  SetLogName(absl::StrCat("worker, rank ", ranks.rank));
  ASSIGN_OR_RETURN(const Invitation invitation, DecodeInvitation(ShareAndLeaveMpi("")));
  // Rank 0 has said what is wrong; once is enough.
  if (!invitation.error.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(options.coordinator, FirstThatAnswers(invitation.addresses, options.join_timeout));
  options.join_secret = invitation.secret;
  const uint32_t stage = static_cast<uint32_t>(ranks.rank - 1);
  if (stage < stages) options.stage = stage;
  options.backends.local_rank = ranks.worker_on_host;
  return RunWorker(options);
}

struct MpiFlags {
  CoordinatorFlags coordinator;
  WorkerFlags worker;
  std::string secret_file;
};

absl::StatusOr<OptionSet::Outcome> ParseFlags(int argc, char** argv, MpiFlags& flags) {
  OptionSet set("millrace-mpi", "--model M.gguf [options]   (under mpirun; see deploy/mpirun.sh)",
                "A whole cluster under mpirun: rank 0 is the coordinator, every other rank a worker.");
  flags.coordinator.Declare(set, /*with_join_secret=*/false);
  flags.worker.DeclareLocal(set);
  set.AddString("join-secret-file-out", &flags.secret_file, "FILE",
                "rank 0 writes this run's secret there, so that a worker started by hand can join");
  return set.Parse(std::vector<std::string>(argv + 1, argv + argc), nullptr);
}

int Main(int argc, char** argv) {
  // mpirun may be killed without a word; its ranks must not stay behind.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  const char* env_rank = std::getenv("OMPI_COMM_WORLD_RANK");
  const bool speaks = env_rank == nullptr || std::string(env_rank) == "0";
  if (!speaks && argc == 2 && (std::string(argv[1]) == "--help" || std::string(argv[1]) == "--version"))
    return kExitOk;
  MpiFlags flags;
  const auto outcome = ParseFlags(argc, argv, flags);
  if (outcome.ok() && *outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  absl::StatusOr<CoordinatorOptions> options = outcome.ok() ? flags.coordinator.Finish() : outcome.status();
  if (const absl::Status local = flags.worker.CheckLocal(); options.ok() && !local.ok()) options = local;
  if (!options.ok()) {
    if (speaks) std::fprintf(stderr, "millrace-mpi: %s\n", std::string(options.status().message()).c_str());
    return kExitUsage;
  }
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
  const absl::Status status = ranks.rank == 0 ? RunRankZero(*options, ranks, flags.secret_file)
                                              : RunWorkerRank(flags.worker.options, ranks, options->stages);
  if (status.ok()) return kExitOk;
  LogError(status.message());
  return kExitFailure;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  return millrace::Main(argc, argv);
}
