#include "worker/control/worker.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bounded_queue.h"
#include "common/health_state.h"
#include "common/log.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "common/transport/credentials.h"
#include "common/transport/local_socket.h"
#include "common/transport/numeric_messages.h"
#include "common/transport/profile_messages.h"
#include "common/transport/secret.h"
#include "grpcpp/grpcpp.h"
#include "worker/control/backend_choice.h"
#include "worker/control/coordinator_lease.h"
#include "worker/control/coordinator_session.h"
#include "worker/control/model_fetch.h"
#include "worker/control/stage_host.h"
#include "worker/control/worker_hello.h"

namespace millrace {
namespace {

struct SessionClosed {
  absl::Status status;
};
struct StopRequested {};
using WorkerEvent = std::variant<v1::CoordinatorMessage, SessionClosed, StopRequested>;

constexpr size_t kEventCapacity = 256;
// So many heartbeats come soon one after another, so that the clocks are compared well before the first
// microbatch.
constexpr int kQuickBeats = 8;
constexpr absl::Duration kQuickBeat = absl::Milliseconds(20);
constexpr absl::Duration kProgressInterval = absl::Seconds(1);
constexpr absl::Duration kJoinAgain = absl::Milliseconds(500);
// Thread: control (the main thread) unless said otherwise.
class Worker {
 public:
  explicit Worker(const WorkerOptions& options)
      : options_(options), health_(options.health.liveness_timeout), events_(kEventCapacity) {}
  ~Worker();

  absl::Status Run();

 private:
  absl::Status ServeHealth();
  absl::Status Prepare();
  absl::Status Listen();
  void OpenSession();
  void SendHello();
  // Reaches a coordinator, and works until the control stream ends.
  absl::Status Join(absl::Duration timeout, const std::atomic<bool>& stop);
  absl::Status Loop();
  // Empty: go on. Otherwise the worker ends with that status.
  std::optional<absl::Status> Handle(v1::CoordinatorMessage message);
  absl::Status OnWelcome(const v1::Welcome& welcome);
  absl::Status GetModel(const v1::Welcome& welcome);
  absl::Status OpenModelAt(const v1::Welcome& welcome);
  absl::Status FetchModel(const v1::Welcome& welcome);
  void SendProgress(uint64_t done, uint64_t total);
  absl::Status OnMeasure(const v1::Measure& measure);
  void OnAssign(const v1::Assign& assign);
  void OnActivate(const v1::Activate& activate);
  void OnCoordinatorMessage(v1::CoordinatorMessage message);   // Thread: grpc
  void SendStageFailed(Epoch epoch, const absl::Status& why);  // Thread: any
  void StartHeartbeats(absl::Duration interval);
  void Beat(absl::Duration interval);  // Thread: heartbeat

  WorkerOptions options_;          // settled by Prepare
  SharedCredentials credentials_;  // null: plain text
  std::string secret_;
  std::string ring_address_;
  std::string unix_address_;  // empty: hops by TCP only
  uint64_t epoch_ = 0;
  HealthState health_;
  std::unique_ptr<HealthServer> health_server_;  // null: none
  HealthState::Loop turns_{&health_, "control"};
  BoundedQueue<WorkerEvent> events_;
  std::string kernels_;  // for people: the instruction set
  EpochRouter router_;
  std::unique_ptr<HopListener> listener_;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> welcomed_{false};  // a coordinator has taken this worker
  std::atomic<bool> ending_{false};    // the coordinator has ended the cluster
  FetchInterrupter interrupter_;
  std::unique_ptr<StageHost> host_;
  std::unique_ptr<CoordinatorSession> session_;
  Mutex clock_mutex_;
  int64_t answered_sent_ns_ ABSL_GUARDED_BY(clock_mutex_) =
      0;  // of the last ClockAnswer that is not reported
  int64_t answer_received_ns_ ABSL_GUARDED_BY(clock_mutex_) = 0;
  BoundedQueue<int> heartbeat_stop_{1};
  std::thread heartbeat_;
  std::unique_ptr<CoordinatorLease> lease_;  // from OpenSession on
};

Worker::~Worker() {
  events_.Close();  // nobody takes events any more, and a gRPC thread may be waiting for room
  heartbeat_stop_.Close();
  if (heartbeat_.joinable()) heartbeat_.join();
  if (host_ != nullptr) host_->EndEpoch();
  session_.reset();
  lease_.reset();
  if (server_ != nullptr)
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  host_.reset();
}

// Before anything that takes long.
absl::Status Worker::ServeHealth() {
  if (options_.health.listen.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(health_server_, HealthServer::Start(options_.health.listen, &health_));
  std::printf("health at %s\n", health_server_->address().c_str());
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status Worker::Prepare() {
  RaiseFileLimit();
  ASSIGN_OR_RETURN(credentials_, Credentials::Load(options_.tls, /*follow=*/true));
  if (credentials_ != nullptr) SetHandshakeLog(HandshakeLog::kExplained);
  WarnIfConfined(static_cast<int>(options_.backends.shards));
  secret_ = options_.join_secret;
  if (!options_.join_secret_file.empty()) {
    ASSIGN_OR_RETURN(secret_, ReadSecretFile(options_.join_secret_file));
  }
  ASSIGN_OR_RETURN(kernels_, CpuKernelsName(options_.backends.isa));
  RETURN_IF_ERROR(ChooseBackend(CudaLibraryPath(), &options_.backends));
  if (options_.backends.cuda != nullptr) kernels_ = CudaKernelsName(options_.backends);
  LogInfo("kernels: ", kernels_, ", threads: ",
          options_.backends.threads == 0 ? "this worker's share of the cores"
                                         : absl::StrCat(options_.backends.threads));
  listener_ = std::make_unique<HopListener>(secret_);
  StageHostOptions host;
  host.backends = options_.backends;
  host.listener = listener_.get();
  host.router = &router_;
  host.credentials = credentials_;
  host.secret = secret_;
  host.coordinator_address = options_.coordinator;
  host.kv_memory_bytes = options_.kv_memory_bytes;
  host.make_stage = options_.make_stage;
  host.on_failed = [this](Epoch epoch, absl::Status why) { SendStageFailed(epoch, why); };
  host.on_progress = [this, last = absl::InfinitePast()](uint64_t done, uint64_t total) mutable {
    turns_.Tick();
    const absl::Time now = Clock::Steady().Now();
    if (done < total && now - last < kProgressInterval) return;
    last = now;
    LogInfo("loading: ", FormatBytes(done), " of ", FormatBytes(total));
    SendProgress(done, total);
  };
  host_ = std::make_unique<StageHost>(std::move(host));
  if (options_.model.empty()) return absl::OkStatus();
  const absl::Status opened = host_->OpenModel(options_.model);
  if (absl::IsNotFound(opened) && !options_.model_cache.empty()) {
    LogInfo(opened.message(), "; the coordinator is asked for it");
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(opened);
  return host_->CheckShards();
}

void Worker::SendProgress(uint64_t done, uint64_t total) {
  v1::WorkerMessage message;
  message.mutable_load_progress()->set_epoch(epoch_);
  message.mutable_load_progress()->set_bytes_done(done);
  message.mutable_load_progress()->set_bytes_total(total);
  session_->Send(std::move(message));
}

absl::Status Worker::Listen() {
  ASSIGN_OR_RETURN(const HostPort coordinator, ParseHostPort(options_.coordinator));
  HostPort address;
  if (options_.listen.empty()) {
    ASSIGN_OR_RETURN(address.host, SourceAddressTowards(coordinator));
  } else {
    ASSIGN_OR_RETURN(address, ParseHostPort(options_.listen));
  }
  grpc::ServerBuilder builder;
  // A hop's own limit is checked per frame; this one only has to be above it.
  ConfigureServer(builder, size_t{1} << 30);
  int port = 0;
  builder.AddListeningPort(address.ToString(), PeerPortCredentials(credentials_), &port);
  // A Unix socket asks for no certificate: behind it only the join secret keeps others out.
  const bool guarded = credentials_ == nullptr || !secret_.empty();
  if (options_.unix_sockets == "auto" && guarded) unix_address_ = MakeUnixAddress();
  if (!unix_address_.empty()) builder.AddListeningPort(unix_address_, grpc::InsecureServerCredentials());
  builder.RegisterService(listener_->service());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address.ToString(),
                                               ": the port is in use, or not an address of this host"));
  }
  address.port = static_cast<uint16_t>(port);
  std::printf("listening on %s\n", address.ToString().c_str());
  std::fflush(stdout);
  if (!options_.advertise.empty()) {
    address.host = options_.advertise;
  } else if (IsAnyAddress(address.host)) {
    ASSIGN_OR_RETURN(address.host, SourceAddressTowards(coordinator));
  }
  ring_address_ = address.ToString();
  return absl::OkStatus();
}

void Worker::OpenSession() {
  lease_ = std::make_unique<CoordinatorLease>(options_.coordinator_timeout, [this] {
    EndInSilence(options_.coordinator, options_.coordinator_timeout);
  });
  CoordinatorSessionCallbacks callbacks;
  callbacks.on_message = [this](v1::CoordinatorMessage message) { OnCoordinatorMessage(std::move(message)); };
  callbacks.on_closed = [this](absl::Status status) {
    if (welcomed_) interrupter_.Interrupt();
    events_.Push(SessionClosed{std::move(status)});
  };
  session_ = std::make_unique<CoordinatorSession>(options_.coordinator, credentials_, std::move(callbacks));
}

void Worker::SendHello() {
  HelloFacts facts;
  facts.secret = secret_;
  facts.ring_address = ring_address_;
  facts.unix_address = unix_address_;
  facts.model_fingerprint = host_->fingerprint();
  facts.kernels = kernels_;
  v1::WorkerMessage message;
  *message.mutable_hello() = MakeHello(options_, facts);
  session_->Send(std::move(message));
}

void Worker::OnCoordinatorMessage(v1::CoordinatorMessage message) {
  lease_->Heard();
  if (message.has_welcome()) welcomed_ = true;
  if (message.has_shutdown()) ending_ = true;
  if (message.has_clock_answer()) {
    MutexLock lock(&clock_mutex_);
    answered_sent_ns_ = message.clock_answer().heartbeat_sent_ns();
    answer_received_ns_ = SteadyNanos();
    return;
  }
  if (message.has_plan()) {
    const absl::Status status = router_.DeliverPlan(message.plan());
    if (!status.ok()) SendStageFailed(Epoch(message.plan().epoch()), status);
    return;
  }
  events_.Push(std::move(message));
}

void Worker::SendStageFailed(Epoch epoch, const absl::Status& why) {
  if (ending_) return;  // neighbours end their hops, too
  LogWarning("epoch ", epoch.value(), " cannot go on: ", why.message());
  v1::WorkerMessage message;
  message.mutable_stage_failed()->set_epoch(epoch.value());
  message.mutable_stage_failed()->set_message(std::string(why.message()));
  session_->Send(std::move(message));
}

void Worker::StartHeartbeats(absl::Duration interval) {
  if (heartbeat_.joinable()) return;
  heartbeat_ = std::thread([this, interval] {
    NameThread("heartbeat");
    Beat(interval);
  });
}

void Worker::Beat(absl::Duration interval) {
  for (int beats = 0; !heartbeat_stop_.closed(); ++beats) {
    v1::WorkerMessage message;
    message.mutable_heartbeat()->set_microbatches_done(host_->microbatches_done());
    {
      MutexLock lock(&clock_mutex_);
      message.mutable_heartbeat()->set_answered_sent_ns(std::exchange(answered_sent_ns_, 0));
      message.mutable_heartbeat()->set_answer_received_ns(std::exchange(answer_received_ns_, 0));
    }
    message.mutable_heartbeat()->set_sent_ns(SteadyNanos());
    session_->Send(std::move(message));
    heartbeat_stop_.Pop(beats < kQuickBeats ? std::min(interval, kQuickBeat) : interval);
  }
}

absl::Status Worker::OpenModelAt(const v1::Welcome& welcome) {
  const absl::Status status = host_->OpenModel(welcome.model_path());
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(status.message(),
                                     " (the coordinator's path; give this host's with --model, "
                                     "or have it sent by --push-model of the coordinator)"));
  }
  if (host_->fingerprint() == welcome.model_fingerprint()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      welcome.model_path(), " on this host is another model than the coordinator's: fingerprint ",
      host_->fingerprint(), ", expected ", welcome.model_fingerprint()));
}

absl::Status Worker::FetchModel(const v1::Welcome& welcome) {
  ModelFetchOptions fetch;
  fetch.coordinator_address = options_.coordinator;
  fetch.secret = secret_;
  fetch.credentials = credentials_;
  fetch.manifest_sha256 = welcome.manifest_sha256();
  fetch.fingerprint = welcome.model_fingerprint();
  fetch.folder = options_.model_cache.empty() ? DefaultModelCache() : options_.model_cache;
  fetch.interrupter = &interrupter_;
  fetch.on_turn = [this] { turns_.Tick(); };
  fetch.on_progress = [this](uint64_t done, uint64_t total) { SendProgress(done, total); };
  ASSIGN_OR_RETURN(std::unique_ptr<ModelFetch> model, ModelFetch::Open(std::move(fetch)));
  return host_->OpenFetchedModel(std::move(model));
}

absl::Status Worker::GetModel(const v1::Welcome& welcome) {
  const bool offered = !welcome.manifest_sha256().empty();
  if (!offered || options_.model_cache.empty()) {
    const absl::Status here = OpenModelAt(welcome);
    if (here.ok() || !offered) return here;
    LogInfo(welcome.model_path(), " cannot be used on this host; the coordinator sends what is needed");
  }
  return FetchModel(welcome);
}

absl::Status Worker::OnWelcome(const v1::Welcome& welcome) {
  SetLogName(
      absl::StrCat(options_.log_name, options_.log_name.empty() ? "" : ", ", "worker ", welcome.worker_id()));
  // Beats begin first: a model that is sent may take longer than the coordinator waits in silence.
  StartHeartbeats(absl::Milliseconds(std::max(welcome.heartbeat_millis(), 10u)));
  if (!host_->has_model()) {
    RETURN_IF_ERROR(GetModel(welcome));
    RETURN_IF_ERROR(host_->CheckShards());
  }
  LogInfo("joined ", options_.coordinator, " as worker ", welcome.worker_id());
  return absl::OkStatus();
}

absl::Status Worker::OnMeasure(const v1::Measure& measure) {
  if (!host_->has_model()) return absl::InternalError("the coordinator asked to measure before its welcome");
  LogInfo("measuring how fast layers and output head run here");
  const absl::Time begin = Clock::Steady().Now();
  ASSIGN_OR_RETURN(const WorkerProfile profile, host_->Measure(measure));
  const ProfilePoint& layer = profile.layer.front();
  LogInfo("measured in ",
          absl::FormatDuration(absl::Trunc(Clock::Steady().Now() - begin, absl::Milliseconds(1))),
          ": a decode takes ", absl::StrFormat("%.3f", layer.seconds * 1e3), " ms a layer and ",
          absl::StrFormat("%.3f", profile.head.front().seconds * 1e3), " ms at the output head");
  v1::WorkerMessage answer;
  *answer.mutable_profile() = ToWire(profile);
  session_->Send(std::move(answer));
  return absl::OkStatus();
}

void Worker::OnAssign(const v1::Assign& assign) {
  epoch_ = assign.epoch();
  health_.SetReady(false);
  LogInfo("epoch ", assign.epoch(), ": stage ", assign.stage(), " of ", assign.num_stages(), ", layers ",
          assign.first_layer(), " to ", assign.first_layer() + assign.num_layers() - 1);
  v1::WorkerMessage answer;
  absl::StatusOr<v1::Loaded> loaded = host_->Assign(assign);
  // What interrupted it comes as an event, and says more.
  if (!loaded.ok() && interrupter_.interrupted()) return;
  if (loaded.ok()) {
    *answer.mutable_loaded() = *std::move(loaded);
  } else {
    LogError("cannot hold this stage: ", loaded.status().message());
    answer.mutable_assign_failed()->set_epoch(assign.epoch());
    answer.mutable_assign_failed()->set_message(std::string(loaded.status().message()));
  }
  session_->Send(std::move(answer));
}

void Worker::OnActivate(const v1::Activate& activate) {
  const absl::Status status = host_->Activate(activate);
  if (!status.ok()) return SendStageFailed(Epoch(activate.epoch()), status);
  health_.SetReady(true);
  v1::WorkerMessage answer;
  answer.mutable_ready()->set_epoch(activate.epoch());
  answer.mutable_ready()->set_hop(host_->hop_is_local() ? "unix" : "tcp");
  session_->Send(std::move(answer));
}

std::optional<absl::Status> Worker::Handle(v1::CoordinatorMessage message) {
  switch (message.message_case()) {
    case v1::CoordinatorMessage::kWelcome: {
      const absl::Status status = OnWelcome(message.welcome());
      // What interrupted it comes as an event, and says more.
      if (!status.ok() && !interrupter_.interrupted()) return status;
      break;
    }
    case v1::CoordinatorMessage::kMeasure: {
      if (!host_->has_model() && interrupter_.interrupted()) break;
      const absl::Status status = OnMeasure(message.measure());
      if (!status.ok()) return status;
      break;
    }
    case v1::CoordinatorMessage::kAssign:
      if (!host_->has_model() && interrupter_.interrupted()) break;
      if (!host_->has_model())
        return absl::InternalError("the coordinator assigned a stage before its welcome");
      OnAssign(message.assign());
      break;
    case v1::CoordinatorMessage::kActivate:
      OnActivate(message.activate());
      break;
    case v1::CoordinatorMessage::kShutdown:
      LogInfo("the coordinator ends the cluster: ", message.shutdown().reason());
      return absl::OkStatus();
    default:
      break;
  }
  return std::nullopt;
}

absl::Status Worker::Loop() {
  while (!events_.closed()) {
    turns_.Tick();
    std::optional<WorkerEvent> event = events_.Pop(kLongestLoopWait);
    if (!event.has_value()) continue;
    if (auto* message = std::get_if<v1::CoordinatorMessage>(&*event)) {
      if (std::optional<absl::Status> end = Handle(std::move(*message))) return *end;
    } else if (auto* closed = std::get_if<SessionClosed>(&*event)) {
      return WhyItEnds(options_.coordinator, closed->status);
    } else {
      LogInfo("stopping");
      v1::WorkerMessage goodbye;
      goodbye.mutable_goodbye();
      session_->Send(std::move(goodbye));
      session_->Close();
      return absl::OkStatus();
    }
  }
  return absl::OkStatus();
}

absl::Status Worker::Join(absl::Duration timeout, const std::atomic<bool>& stop) {
  const absl::Status reached =
      WaitForCoordinator(options_.coordinator, credentials_, timeout, [&](absl::Duration waited) {
        turns_.Tick();
        LogInfo("waiting for the coordinator at ", options_.coordinator, " (",
                absl::FormatDuration(absl::Trunc(waited, absl::Seconds(1))), ")");
        return !stop.load();
      });
  if (stop) return absl::OkStatus();
  RETURN_IF_ERROR(reached);
  OpenSession();
  SendHello();
  return Loop();
}

absl::Status Worker::Run() {
  std::atomic<bool> stop{false};
  SignalWatcher signals([&](int) {
    stop = true;
    interrupter_.Interrupt();
    events_.Push(StopRequested{});
  });
  RETURN_IF_ERROR(ServeHealth());
  RETURN_IF_ERROR(Prepare());
  RETURN_IF_ERROR(Listen());
  health_.SetStarted();
  const absl::Time until = Clock::Steady().Now() + options_.join_timeout;
  while (true) {
    const absl::Status status = Join(until - Clock::Steady().Now(), stop);
    const bool in_time = Clock::Steady().Now() + kJoinAgain < until;
    if (welcomed_ || !in_time || WorkerExitCode(status) != kExitCoordinatorLost) return status;
    // One that was stopping, as when it is replaced: the next one has the same address.
    LogInfo("the coordinator at ", options_.coordinator, " went before it took this worker; trying again");
    session_.reset();
    lease_.reset();
    turns_.Tick();
    if (events_.Pop(kJoinAgain).has_value())
      return absl::OkStatus();  // nobody else is left to send one: a stop
  }
}

}  // namespace

absl::Status RunWorker(const WorkerOptions& options) {
  return Worker(options).Run();
}

}  // namespace millrace
