#include "tests/integration/in_process_cluster.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/transport/channels.h"
#include "common/transport/local_socket.h"
#include "common/transport/numeric_messages.h"

namespace millrace::testing {
namespace {

std::unique_ptr<grpc::Server> Serve(const std::vector<grpc::Service*>& services, std::string* address,
                                    const std::string& unix_address) {
  grpc::ServerBuilder builder;
  ConfigureServer(builder, size_t{1} << 28);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  if (!unix_address.empty()) {
    builder.AddListeningPort(unix_address, grpc::InsecureServerCredentials());
  }
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  MILLRACE_CHECK(server != nullptr && port != 0);
  *address = absl::StrCat("127.0.0.1:", port);
  return server;
}

void ShutDown(grpc::Server& server) {
  server.Shutdown(std::chrono::system_clock::now());
}

}  // namespace

void OutcomeSink::OnActions(std::vector<SchedulerAction> actions) {
  MutexLock lock(&mutex_);
  for (SchedulerAction& action : actions) {
    if (auto* token = std::get_if<TokenReady>(&action)) {
      SequenceOutcome& outcome = outcomes_[token->sequence];
      outcome.tokens.push_back(token->token);
      if (token->logprobs.has_value()) outcome.logprobs.push_back(*std::move(token->logprobs));
    } else if (auto* prompt = std::get_if<PromptLogprobsReady>(&action)) {
      std::vector<TokenLogprobs>& all = outcomes_[prompt->sequence].prompt_logprobs;
      all.insert(all.end(), prompt->positions.begin(), prompt->positions.end());
    } else {
      const auto& finished = std::get<SequenceFinished>(action);
      outcomes_[finished.sequence].status = finished.status;
      outcomes_[finished.sequence].reason = finished.reason;
      ended_[finished.sequence] = true;
    }
  }
  changed_.NotifyAll();
}

bool OutcomeSink::AwaitToken(SequenceId id) {
  const absl::Time deadline = Clock::Steady().Now() + kPatience;
  MutexLock lock(&mutex_);
  while (outcomes_[id].tokens.empty() && !ended_[id]) {
    if (!changed_.WaitFor(&mutex_, deadline - Clock::Steady().Now())) return false;
  }
  return !outcomes_[id].tokens.empty();
}

std::optional<SequenceOutcome> OutcomeSink::AwaitEnd(SequenceId id) {
  const absl::Time deadline = Clock::Steady().Now() + kPatience;
  MutexLock lock(&mutex_);
  while (!ended_[id]) {
    if (!changed_.WaitFor(&mutex_, deadline - Clock::Steady().Now())) return std::nullopt;
  }
  return outcomes_[id];
}

TestCoordinator::TestCoordinator(const Options& options) {
  const uint32_t stages = static_cast<uint32_t>(options.layers.size());
  EngineOptions engine;
  engine.scheduler.context_tokens = options.context_tokens;
  engine.scheduler.max_rows = 64;
  engine.scheduler.end_tokens = {kTinyImEnd};
  engine.on_ring_fault = [this](Epoch epoch, absl::Status why) {
    controller_->ReportRingFault(epoch, std::move(why));
  };
  engine_ = std::make_unique<Engine>(std::move(engine), &sink_);
  ClusterControllerOptions cluster;
  cluster.cluster.version = kClusterVersion;
  cluster.cluster.secret = kClusterSecret;
  cluster.cluster.model_fingerprint = options.fingerprint;
  cluster.cluster.worker_timeout = options.worker_timeout;
  cluster.cluster.numeric = options.numeric;
  uint32_t first = 0;
  for (const uint32_t count : options.layers) {
    cluster.cluster.placement.push_back({first, count});
    first += count;
  }
  const std::string unix_address = MakeUnixAddress();
  cluster.cluster.unix_address = unix_address;
  cluster.cluster.host_identity = HostIdentity();
  cluster.model_path = options.model_path;
  cluster.max_rows = 64;
  cluster.max_in_flight = stages + 1;
  cluster.block_tokens = 16;
  cluster.context_tokens = options.context_tokens;
  cluster.on_state = [this](PipelineState state) { states_.Push(state); };
  controller_ = std::make_unique<ClusterController>(std::move(cluster), engine_.get(), &listener_);
  engine_->Start();
  server_ = Serve({controller_->service(), listener_.service()}, &address_, unix_address);
  controller_->Start();
}

TestCoordinator::~TestCoordinator() {
  states_.Close();
  controller_->Stop("the test is over", absl::ZeroDuration());
  ShutDown(*server_);
  engine_->Stop();
}

bool TestCoordinator::AwaitState(PipelineState state) {
  while (const std::optional<PipelineState> next = states_.Pop(kPatience)) {
    if (*next == state) return true;
  }
  return false;
}

v1::WorkerMessage MakeHello(const std::string& fingerprint) {
  v1::WorkerMessage message;
  message.mutable_hello()->set_version(kClusterVersion);
  message.mutable_hello()->set_secret(kClusterSecret);
  message.mutable_hello()->set_model_fingerprint(fingerprint);
  message.mutable_hello()->set_ring_address("127.0.0.1:1");
  for (const ActivationType type : SupportedActivations({})) {
    message.mutable_hello()->add_activation_types(ToWire(type));
  }
  for (const KvType type : SupportedKvTypes({})) message.mutable_hello()->add_kv_types(ToWire(type));
  return message;
}

TestWorker::TestWorker(const Options& options) : options_(options) {
  StageHostOptions host;
  host.backends = options.backends;
  host.listener = &listener_;
  host.router = &router_;
  host.secret = kClusterSecret;
  host.coordinator_address = options.coordinator;
  host.kv_memory_bytes = options.kv_memory_bytes;
  host.make_stage = options.make_stage;
  host.on_failed = [this](Epoch epoch, absl::Status why) { SendStageFailed(epoch, why); };
  host.on_progress = [](uint64_t, uint64_t) {};
  host_ = std::make_unique<StageHost>(std::move(host));
  const absl::Status opened = host_->OpenModel(options.model_path);
  MILLRACE_CHECK(opened.ok());
  const std::string unix_address = options.local == Options::Local::kNo ? "" : MakeUnixAddress();
  server_ =
      Serve({listener_.service()}, &ring_address_, options.local == Options::Local::kYes ? unix_address : "");
  CoordinatorSessionCallbacks callbacks;
  callbacks.on_message = [this](v1::CoordinatorMessage message) { OnMessage(std::move(message)); };
  callbacks.on_closed = [this](absl::Status status) { closed_.Push(std::move(status)); };
  session_ = std::make_unique<CoordinatorSession>(options.coordinator, nullptr, std::move(callbacks));
  control_ = std::thread([this] { Control(); });
  v1::WorkerMessage hello = MakeHello(host_->fingerprint());
  hello.mutable_hello()->set_ring_address(ring_address_);
  if (!unix_address.empty()) {
    hello.mutable_hello()->set_unix_address(unix_address);
    hello.mutable_hello()->set_host_identity(HostIdentity());
  }
  if (options.stage.has_value()) hello.mutable_hello()->set_stage(*options.stage);
  session_->Send(std::move(hello));
}

TestWorker::~TestWorker() {
  events_.Close();
  control_.join();
  host_->EndEpoch();
  session_.reset();
  ShutDown(*server_);
}

void TestWorker::Vanish() {
  session_->Close();
  AwaitClosed();
}

int64_t TestWorker::ClockNanos() const {
  return SteadyNanos() + absl::ToInt64Nanoseconds(options_.clock_ahead);
}

bool TestWorker::ExchangeClocks() {
  v1::WorkerMessage message;
  message.mutable_heartbeat()->set_answered_sent_ns(last_answer_.first);
  message.mutable_heartbeat()->set_answer_received_ns(last_answer_.second);
  message.mutable_heartbeat()->set_sent_ns(ClockNanos());
  session_->Send(std::move(message));
  const auto answer = clock_answers_.Pop(kPatience);
  if (answer.has_value()) last_answer_ = *answer;
  return answer.has_value();
}

void TestWorker::OnMessage(v1::CoordinatorMessage message) {
  if (message.has_clock_answer()) {
    clock_answers_.Push({message.clock_answer().heartbeat_sent_ns(), ClockNanos()});
    return;
  }
  if (message.has_plan()) {
    const absl::Status status = router_.DeliverPlan(message.plan());
    if (!status.ok()) SendStageFailed(Epoch(message.plan().epoch()), status);
    return;
  }
  events_.Push(std::move(message));
}

void TestWorker::SendStageFailed(Epoch epoch, const absl::Status& why) {
  v1::WorkerMessage message;
  message.mutable_stage_failed()->set_epoch(epoch.value());
  message.mutable_stage_failed()->set_message(std::string(why.message()));
  session_->Send(std::move(message));
}

void TestWorker::Control() {
  while (const std::optional<v1::CoordinatorMessage> message = events_.Pop()) Handle(*message);
}

void TestWorker::Handle(const v1::CoordinatorMessage& message) {
  v1::WorkerMessage answer;
  if (message.has_assign()) {
    assigned_.Push(message.assign().epoch());
    absl::StatusOr<v1::Loaded> loaded = host_->Assign(message.assign());
    if (loaded.ok()) {
      *answer.mutable_loaded() = *std::move(loaded);
    } else {
      answer.mutable_assign_failed()->set_epoch(message.assign().epoch());
      answer.mutable_assign_failed()->set_message(std::string(loaded.status().message()));
    }
    session_->Send(std::move(answer));
  } else if (message.has_activate()) {
    const absl::Status status = host_->Activate(message.activate());
    if (!status.ok()) return SendStageFailed(Epoch(message.activate().epoch()), status);
    answer.mutable_ready()->set_epoch(message.activate().epoch());
    answer.mutable_ready()->set_hop(host_->hop_is_local() ? "unix" : "tcp");
    session_->Send(std::move(answer));
  } else if (message.has_shutdown()) {
    shutdowns_.Push(message.shutdown().reason());
    session_->Close();
  }
}

}  // namespace millrace::testing
