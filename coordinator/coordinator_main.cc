// millrace-coordinator: clients call it, workers join it.
#include <cstdio>
#include <string>
#include <vector>

#include "common/log.h"
#include "common/options.h"
#include "common/process.h"
#include "coordinator/coordinator.h"

int main(int argc, char** argv) {
  millrace::SetLogName("coordinator");
  millrace::CoordinatorFlags flags;
  millrace::OptionSet set(
      "millrace-coordinator", "--model M.gguf --stages N [options]",
      "Cuts a model into pipeline stages, takes requests, and keeps microbatches flowing.");
  flags.Declare(set, /*with_join_secret=*/true);
  const auto outcome = set.Parse(std::vector<std::string>(argv + 1, argv + argc), nullptr);
  if (outcome.ok() && *outcome == millrace::OptionSet::Outcome::kHelpShown) return millrace::kExitOk;
  auto options = outcome.ok() ? flags.Finish() : outcome.status();
  if (options.ok() && options->tls.on()) {
    const absl::Status files = millrace::ReadTlsFiles(options->tls).status();
    if (!files.ok()) options = files;
  }
  if (!options.ok()) {
    std::fprintf(stderr, "millrace-coordinator: %s\n", std::string(options.status().message()).c_str());
    return millrace::kExitUsage;
  }
  if (flags.die_with_parent) millrace::DieWithParent();
  const absl::Status status = millrace::RunCoordinator(
      *options, [](const millrace::CoordinatorAddresses&) { return absl::OkStatus(); });
  if (status.ok()) return millrace::kExitOk;
  millrace::LogError(status.message());
  return millrace::kExitFailure;
}
