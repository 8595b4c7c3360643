#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/client.h"

namespace millrace::cli {
namespace {

// Beyond the wait itself: what the call may take on its way.
constexpr absl::Duration kCallTime = absl::Seconds(5);

int Report(const v1::DrainResponse& response, const std::string& what) {
  if (response.finished()) {
    std::printf("%s is drained and may be stopped\n", what.c_str());
    return kExitOk;
  }
  std::fprintf(stderr, "millrace: the wait is over: %u requests are still running on %s\n",
               response.remaining_requests(), what.c_str());
  return kExitFailure;
}

}  // namespace

int DrainCommand(const std::vector<std::string>& args) {
  ServerFlags flags;
  absl::Duration wait = absl::Seconds(60);
  int64_t stage = -1;
  OptionSet set("millrace drain", "[options]",
                "Lets running requests finish before the coordinator, or a stage's worker, is stopped.");
  flags.Declare(set);
  set.AddDuration("wait", &wait, "how long running requests may take; exit code 1 if some are left then");
  set.AddInt(
      "stage", &stage, -1, 1 << 20,
      "the worker of this stage is to leave: requests wait for its replacement, none is refused; -1: the "
      "coordinator is to leave: it refuses new requests from now on");
  const auto outcome = set.Parse(args, nullptr);
  if (!outcome.ok()) return ReportUsage("drain", outcome.status());
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  if (const absl::Status tls = flags.Load(); !tls.ok()) return ReportUsage("drain", tls);
  v1::DrainRequest request;
  if (stage >= 0) request.set_stage(static_cast<uint32_t>(stage));
  absl::Duration rest = wait;
  request.mutable_wait()->set_seconds(absl::IDivDuration(rest, absl::Seconds(1), &rest));
  request.mutable_wait()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  Client client(flags);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(wait + kCallTime));
  v1::DrainResponse response;
  const grpc::Status status = client.control->Drain(&context, request, &response);
  if (!status.ok()) return ReportStatus(status, flags);
  if (flags.json) {
    std::puts(ToJson(response).c_str());
    return response.finished() ? kExitOk : kExitFailure;
  }
  return Report(response, stage >= 0 ? absl::StrCat("the worker of stage ", stage)
                                     : absl::StrCat("the coordinator at ", flags.server));
}

}  // namespace millrace::cli
