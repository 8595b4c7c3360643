// Serves metrics over HTTP, as Prometheus scrapes them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/metrics/metrics.h"

namespace millrace {

// Thread: any to make and destroy; `source` is called on threads of its own.
class MetricsServer {
 public:
  // Listens on `address`, a numeric host or "localhost" with a port (0: any free one), and answers
  // /metrics from what `source` gives. UNAVAILABLE, INVALID_ARGUMENT: one line that names --metrics.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address,
                                                              std::function<MetricsSnapshot()> source);
  ~MetricsServer();  // waits for answers in progress

  // host:port, with the port it got.
  const std::string& address() const { return address_; }

 private:
  class Impl;
  MetricsServer();
  std::string address_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
