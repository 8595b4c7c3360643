#include "coordinator/metrics/metrics_server.h"

#include <arpa/inet.h>

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"

namespace millrace {
namespace {

constexpr size_t kThreads = 2;

class Collector final : public prometheus::Collectable {
 public:
  explicit Collector(std::function<MetricsSnapshot()> source) : source_(std::move(source)) {}
  std::vector<prometheus::MetricFamily> Collect() const override { return MakeMetrics(source_()); }

 private:
  const std::function<MetricsSnapshot()> source_;
};

bool IsNumeric(const std::string& host) {
  in6_addr address;
  return inet_pton(AF_INET, host.c_str(), &address) == 1 || inet_pton(AF_INET6, host.c_str(), &address) == 1;
}

}  // namespace

class MetricsServer::Impl {
 public:
  std::shared_ptr<Collector> collector;
  std::unique_ptr<prometheus::Exposer> exposer;  // first to go: it calls the collector
};

MetricsServer::MetricsServer() = default;
MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address,
                                                                    std::function<MetricsSnapshot()> source) {
  absl::StatusOr<HostPort> parsed = ParseHostPort(address);
  if (!parsed.ok()) return absl::InvalidArgumentError(absl::StrCat("--metrics: ", parsed.status().message()));
  if (parsed->host == "localhost") parsed->host = "127.0.0.1";
  if (!IsNumeric(parsed->host)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--metrics ", address, ": the host must be an address, as 127.0.0.1 or 0.0.0.0"));
  }
  std::unique_ptr<MetricsServer> server(new MetricsServer());
  server->impl_ = std::make_unique<Impl>();
  server->impl_->collector = std::make_shared<Collector>(std::move(source));
  // The library throws where it cannot listen.
  try {
    server->impl_->exposer = std::make_unique<prometheus::Exposer>(parsed->ToString(), kThreads);
    const std::vector<int> ports = server->impl_->exposer->GetListeningPorts();
    if (!ports.empty()) parsed->port = static_cast<uint16_t>(ports.front());
    server->impl_->exposer->RegisterCollectable(server->impl_->collector);
  } catch (const std::exception&) {
    return absl::UnavailableError(absl::StrCat("cannot listen on --metrics ", address,
                                               ": the port is in use, or not an address of this host"));
  }
  server->address_ = parsed->ToString();
  return server;
}

}  // namespace millrace
