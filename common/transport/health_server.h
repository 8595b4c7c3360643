// The health port: a gRPC server of its own, without TLS, that serves grpc.health.v1 and nothing else.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/health_state.h"
#include "common/options.h"

namespace millrace {

struct HealthFlags {
  std::string listen;  // host:port; empty: no health port
  absl::Duration liveness_timeout = absl::Seconds(60);

  void Declare(OptionSet& set);
  // What the flags' own ranges do not say. INVALID_ARGUMENT.
  absl::Status Check() const;
};

// Answers from construction to destruction. Thread: any.
class HealthServer {
 public:
  // `health` outlives it. UNAVAILABLE: cannot listen there. INVALID_ARGUMENT: no address.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const std::string& listen,
                                                             const HealthState* health);
  ~HealthServer();
  HealthServer(const HealthServer&) = delete;
  HealthServer& operator=(const HealthServer&) = delete;

  // With the port it got.
  const std::string& address() const { return address_; }

  // Streams of Watch at once; more are refused.
  static constexpr int kMaxWatchers = 64;

 private:
  class Service;
  HealthServer();

  std::unique_ptr<Service> service_;
  std::string address_;
  struct Running;
  std::unique_ptr<Running> running_;  // the server; ends before the service
};

}  // namespace millrace
