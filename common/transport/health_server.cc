#include "common/transport/health_server.h"

#include <atomic>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/alarm.h"
#include "grpcpp/ext/health_check_service_server_builder_option.h"
#include "grpcpp/grpcpp.h"

namespace millrace {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using ServingStatus = HealthCheckResponse::ServingStatus;

// Liveness changes by the passing of time alone, so watching means looking again and again.
constexpr std::chrono::milliseconds kWatchInterval(500);
constexpr size_t kMaxRequestBytes = 4096;

ServingStatus StatusOf(const HealthState& health, const std::string& service) {
  switch (health.Ask(service)) {
    case HealthState::Answer::kServing:
      return HealthCheckResponse::SERVING;
    case HealthState::Answer::kNotServing:
      return HealthCheckResponse::NOT_SERVING;
    case HealthState::Answer::kUnknownService:
      break;
  }
  return HealthCheckResponse::SERVICE_UNKNOWN;
}

// Either a write or the alarm is outstanding, and whichever comes back decides what is next; so Finish is
// called once, and nothing is used after it.
class Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(const HealthState& health, std::string service, std::atomic<int>* watchers)
      : health_(health), service_(std::move(service)), watchers_(watchers) {
    Look();
  }

 private:
  void Look() {
    // Not under the lock: once it is called, another thread may destroy this.
    if (LookAgain()) Finish(grpc::Status::CANCELLED);
  }
  // True: it is over, and nothing is outstanding.
  bool LookAgain() {
    const ServingStatus now = StatusOf(health_, service_);
    MutexLock lock(&mutex_);
    if (cancelled_) return true;
    if (!told_.has_value() || *told_ != now) {
      told_ = now;
      response_.set_status(now);
      StartWrite(&response_);
      return false;
    }
    // A new one each time: an alarm keeps its callback, which is what runs here, until it is set again.
    alarm_ = std::make_unique<grpc::Alarm>();
    alarm_->Set(std::chrono::system_clock::now() + kWatchInterval, [this](bool) { Look(); });
    return false;
  }
  void OnWriteDone(bool ok) override {
    if (ok) return Look();
    Finish(grpc::Status::CANCELLED);
  }
  void OnCancel() override {
    MutexLock lock(&mutex_);
    cancelled_ = true;
    if (alarm_ != nullptr) alarm_->Cancel();
  }
  void OnDone() override {
    watchers_->fetch_sub(1);
    delete this;
  }

  const HealthState& health_;
  const std::string service_;
  std::atomic<int>* const watchers_;
  HealthCheckResponse response_;
  Mutex mutex_;
  std::optional<ServingStatus> told_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mutex_);
};

class Refusal final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  explicit Refusal(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace

void HealthFlags::Declare(OptionSet& set) {
  set.AddString("health-listen", &listen, "HOST:PORT",
                "answer grpc.health.v1 there, without TLS, from the start on: services liveness, startup, "
                "readiness; port 0: any free one; default: off");
  set.AddDuration("liveness-timeout", &liveness_timeout,
                  "how long a loop of this process may be stuck before liveness says NOT_SERVING");
}

absl::Status HealthFlags::Check() const {
  if (liveness_timeout < 2 * kLongestLoopWait) {
    return absl::InvalidArgumentError(
        absl::StrCat("--liveness-timeout: at least ", absl::FormatDuration(2 * kLongestLoopWait),
                     "; loops tick every ", absl::FormatDuration(kLongestLoopWait)));
  }
  if (listen.empty()) return absl::OkStatus();
  const absl::StatusOr<HostPort> address = ParseHostPort(listen);
  if (address.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--health-listen: ", address.status().message()));
}

class HealthServer::Service final : public grpc::health::v1::Health::CallbackService {
 public:
  explicit Service(const HealthState* health) : health_(*health) {}

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context, const HealthCheckRequest* request,
                                  HealthCheckResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    response->set_status(StatusOf(health_, request->service()));
    const bool known = response->status() != HealthCheckResponse::SERVICE_UNKNOWN;
    reactor->Finish(known ? grpc::Status::OK
                          : grpc::Status(grpc::StatusCode::NOT_FOUND,
                                         "no such service; there are liveness, startup and readiness"));
    return reactor;
  }

  grpc::ServerWriteReactor<HealthCheckResponse>* Watch(grpc::CallbackServerContext*,
                                                       const HealthCheckRequest* request) override {
    if (watchers_.fetch_add(1) >= kMaxWatchers) {
      watchers_.fetch_sub(1);
      return new Refusal(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many watch; use Check"));
    }
    return new Watcher(health_, request->service(), &watchers_);
  }

 private:
  const HealthState& health_;
  std::atomic<int> watchers_{0};
};

struct HealthServer::Running {
  std::unique_ptr<grpc::Server> server;
};

HealthServer::HealthServer() = default;

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(const std::string& listen,
                                                                  const HealthState* health) {
  ASSIGN_OR_RETURN(HostPort address, ParseHostPort(listen));
  std::unique_ptr<HealthServer> result(new HealthServer());
  result->service_ = std::make_unique<Service>(health);
  grpc::ServerBuilder builder;
  ConfigureServer(builder, kMaxRequestBytes);
  // Else a process that turned gRPC's own health service on would have it here, too.
  builder.SetOption(std::make_unique<grpc::HealthCheckServiceServerBuilderOption>(nullptr));
  int port = 0;
  builder.AddListeningPort(address.ToString(), grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(result->service_.get());
  result->running_ = std::make_unique<Running>();
  result->running_->server = builder.BuildAndStart();
  if (result->running_->server == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on --health-listen ", listen,
                                               ": the port is in use, or not an address of this host"));
  }
  address.port = static_cast<uint16_t>(port);
  result->address_ = address.ToString();
  return result;
}

HealthServer::~HealthServer() {
  if (running_ == nullptr || running_->server == nullptr) return;
  running_->server->Shutdown(std::chrono::system_clock::now());
  running_.reset();
}

}  // namespace millrace
