// millrace-worker: one stage of the pipeline.
#include <cstdio>
#include <string>
#include <vector>

#include "common/log.h"
#include "common/options.h"
#include "common/process.h"
#include "worker/control/coordinator_lease.h"
#include "worker/control/worker.h"

int main(int argc, char** argv) {
  millrace::SetLogName("worker");
  millrace::WorkerFlags flags;
  millrace::OptionSet set(
      "millrace-worker", "--coordinator HOST:PORT [options]",
      "Joins a coordinator, holds one stage of the model, and hands activations to the next stage.");
  flags.DeclareJoin(set);
  flags.DeclareLocal(set);
  const auto outcome = set.Parse(std::vector<std::string>(argv + 1, argv + argc), nullptr);
  if (outcome.ok() && *outcome == millrace::OptionSet::Outcome::kHelpShown) return millrace::kExitOk;
  auto options = outcome.ok() ? flags.Finish() : outcome.status();
  if (options.ok() && options->tls.on()) {
    const absl::Status files = millrace::ReadTlsFiles(options->tls).status();
    if (!files.ok()) options = files;
  }
  if (!options.ok()) {
    std::fprintf(stderr, "millrace-worker: %s\n", std::string(options.status().message()).c_str());
    return millrace::kExitUsage;
  }
  if (flags.die_with_parent) millrace::DieWithParent();
  const absl::Status status = millrace::RunWorker(*options);
  if (!status.ok()) millrace::LogError(status.message());
  return millrace::WorkerExitCode(status);
}
