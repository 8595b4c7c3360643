#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace millrace::cli {

int HealthCommand(const std::vector<std::string>& args) {
  using grpc::health::v1::HealthCheckResponse;
  ServerFlags flags;
  std::string service = "readiness";
  absl::Duration timeout = absl::Seconds(5);
  OptionSet set("millrace health", "[options]",
                "Asks a coordinator or worker for its health: exit code 0 if it is SERVING, 1 if not.");
  flags.Declare(set);
  set.AddString("service", &service, "NAME",
                "liveness, startup or readiness at a --health-listen address; at --listen readiness only");
  set.AddDuration("timeout", &timeout, "how long to wait for the answer");
  const auto outcome = set.Parse(args, nullptr);
  if (!outcome.ok()) return ReportUsage("health", outcome.status());
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  if (const absl::Status tls = flags.Load(); !tls.ok()) return ReportUsage("health", tls);
  Client client(flags);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  const grpc::Status status =
      grpc::health::v1::Health::NewStub(client.channel)->Check(&context, request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    return ReportStatus(grpc::Status(status.error_code(),
                                     absl::StrCat(flags.server, " has no health service '", service, "'")),
                        flags);
  }
  if (!status.ok()) return ReportStatus(status, flags);
  if (flags.json) {
    std::printf("%s\n", ToJson(response).c_str());
  } else {
    std::printf("%s\n", HealthCheckResponse::ServingStatus_Name(response.status()).c_str());
  }
  return response.status() == HealthCheckResponse::SERVING ? kExitOk : kExitFailure;
}

}  // namespace millrace::cli
