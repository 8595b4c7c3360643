#include "coordinator/coordinator.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bounded_queue.h"
#include "common/health_state.h"
#include "common/log.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "common/transport/credentials.h"
#include "common/transport/health_server.h"
#include "common/transport/hop_listener.h"
#include "common/transport/local_socket.h"
#include "common/transport/secret.h"
#include "coordinator/cluster/cluster_controller.h"
#include "coordinator/frontend/frontend.h"
#include "coordinator/frontend/random_bits.h"
#include "coordinator/metrics/metrics_server.h"
#include "coordinator/pipeline/engine.h"
#include "coordinator/planner/model_shape.h"
#include "coordinator/planner/placement.h"
#include "grpc/health/v1/health.pb.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "model/chat_template.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "model/tokenizer.h"

namespace millrace {
namespace {

constexpr absl::Duration kStopWorkers = absl::Seconds(2);
constexpr absl::Duration kOrphanGrace = absl::Seconds(1);  // whoever waits for this process is gone
constexpr char kInferenceService[] = "millrace.v1.Inference";

// What is read from the model file.
struct LoadedModel {
  std::unique_ptr<GgufFile> file;
  HyperParameters hyper_parameters;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // null if the file has none
  std::string fingerprint;
  std::shared_ptr<const ModelShape> shape;
};

absl::StatusOr<LoadedModel> LoadModel(const std::string& path, KvType kv_type) {
  LoadedModel model;
  ASSIGN_OR_RETURN(model.file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(model.hyper_parameters, ReadHyperParameters(*model.file));
  ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::FromGguf(*model.file));
  if (model.file->Find("tokenizer.chat_template") != nullptr) {
    ASSIGN_OR_RETURN(const absl::string_view source, model.file->GetString("tokenizer.chat_template"));
    absl::StatusOr<std::unique_ptr<ChatTemplate>> chat_template = ChatTemplate::Parse(source);
    // A model without chat still answers to text and token ids.
    if (chat_template.ok()) {
      model.chat_template = *std::move(chat_template);
    } else {
      LogWarning("chat is off: the model's chat template cannot be used: ", chat_template.status().message());
    }
  }
  model.fingerprint = model.file->Fingerprint();
  ModelShape shape = ReadModelShape(*model.file, model.hyper_parameters);
  shape.kv_type = kv_type;
  model.shape = std::make_shared<const ModelShape>(std::move(shape));
  return model;
}

// What stands until workers have measured.
absl::StatusOr<std::vector<LayerRange>> ChoosePlacement(const CoordinatorOptions& options,
                                                        const ModelShape& shape) {
  if (!options.layers.empty()) return PlaceByCounts(options.layers, shape.num_layers, options.stages);
  // A sampled row is multiplied by the whole output matrix, but the embedding only looks rows up.
  const BatchFeatures batch = ReferenceBatch(options.workload);
  return PlaceLayers({shape.layer_elements, 0, shape.output_elements * batch.sampled_rows / batch.rows()},
                     options.stages);
}

absl::StatusOr<HostPort> AddPort(grpc::ServerBuilder& builder, const std::string& address,
                                 std::shared_ptr<grpc::ServerCredentials> credentials, int* port) {
  ASSIGN_OR_RETURN(HostPort parsed, ParseHostPort(address));
  builder.AddListeningPort(parsed.ToString(), std::move(credentials), port);
  return parsed;
}

// Thread: main.
class Coordinator {
 public:
  explicit Coordinator(const CoordinatorOptions& options)
      : options_(options), health_(options.health.liveness_timeout), signals_(1) {}
  ~Coordinator();

  absl::Status Run(const std::function<absl::Status(const CoordinatorAddresses&)>& on_listening);

 private:
  absl::Status Prepare();
  void MakeFrontend();
  void MakeEngine();
  void MakeCluster();
  absl::Status MakeModelSource();
  absl::StatusOr<CoordinatorAddresses> Listen();
  void AddClusterServices(grpc::ServerBuilder& builder);
  absl::Status BuildClusterServer(CoordinatorAddresses& addresses);
  absl::Status ServeHealth();
  absl::Status ServeMetrics(CoordinatorAddresses& addresses);
  absl::Status WriteStatusFile(const CoordinatorAddresses& addresses) const;
  void TellHealth(bool ready);
  void BeginDrain();
  void Stop();

  CoordinatorOptions options_;
  SharedCredentials credentials_;  // null: plain text
  std::string secret_;
  std::string unix_address_;
  HealthState health_;
  std::unique_ptr<HealthServer> health_server_;  // null: none
  LoadedModel model_;
  std::vector<LayerRange> placement_;
  BoundedQueue<int> signals_;
  std::atomic<bool> stop_asked_{false};
  std::atomic<bool> drain_told_{false};
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<HopListener> listener_;
  std::unique_ptr<ModelSource> model_source_;  // null: the model is not sent to workers
  std::unique_ptr<ClusterController> cluster_;
  std::unique_ptr<grpc::Server> cluster_server_;  // null if one server does both
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<MetricsServer> metrics_;
};

Coordinator::~Coordinator() {
  const auto soon = std::chrono::system_clock::now() + std::chrono::milliseconds(500);
  health_.OnReadyChange(nullptr);
  metrics_.reset();
  // Before the server, whose end waits for the calls that the cluster answers.
  if (cluster_ != nullptr) cluster_->Stop("the coordinator is stopping", absl::ZeroDuration());
  if (frontend_ != nullptr) frontend_->Stop();
  if (server_ != nullptr) server_->Shutdown(soon);
  if (cluster_server_ != nullptr) cluster_server_->Shutdown(soon);
  if (engine_ != nullptr) engine_->Stop();
}

absl::Status Coordinator::Prepare() {
  RaiseFileLimit();
  ASSIGN_OR_RETURN(credentials_, Credentials::Load(options_.tls, /*follow=*/true));
  if (credentials_ != nullptr) SetHandshakeLog(HandshakeLog::kExplained);
  WarnIfConfined(1);
  if (options_.max_in_flight < options_.stages) {
    LogWarning("--max-in-flight ", options_.max_in_flight, " leaves stages idle: there are ",
               options_.stages);
  }
  secret_ = options_.join_secret;
  if (!options_.join_secret_file.empty()) {
    ASSIGN_OR_RETURN(secret_, ReadSecretFile(options_.join_secret_file));
  }
  ASSIGN_OR_RETURN(model_, LoadModel(options_.model, options_.numeric.kv));
  const uint32_t model_context = model_.hyper_parameters.context_tokens;
  if (options_.context_tokens > model_context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--context ", options_.context_tokens, ": the model is made for ", model_context));
  }
  if (options_.context_tokens == 0) options_.context_tokens = model_context;
  model_.hyper_parameters.context_tokens = options_.context_tokens;
  ASSIGN_OR_RETURN(placement_, ChoosePlacement(options_, *model_.shape));
  if (options_.push_model) RETURN_IF_ERROR(MakeModelSource());
  MakeFrontend();
  MakeEngine();
  MakeCluster();
  return absl::OkStatus();
}

void Coordinator::MakeFrontend() {
  FrontendOptions frontend;
  frontend.tokenizer = model_.tokenizer.get();
  frontend.chat_template = model_.chat_template.get();
  frontend.model = model_.hyper_parameters;
  frontend.kv_type = options_.numeric.kv;
  frontend.fingerprint = model_.fingerprint;
  frontend.weight_bytes = StageWeightBytes(*model_.file, 0, model_.hyper_parameters.num_layers, true, true);
  frontend.version = kVersion;
  frontend.max_queued_requests = options_.max_queued;
  frontend.max_running_requests = options_.max_running;
  frontend.max_input_bytes = options_.max_input_bytes;
  frontend.drain.on_drain = [this] { BeginDrain(); };
  frontend.drain.on_all_idle = [this] {
    if (cluster_ != nullptr) cluster_->ReportAllIdle();
  };
  frontend.drain.drain = [this](std::optional<uint32_t> stage, absl::Duration wait, auto done) {
    cluster_->Drain(stage, wait, std::move(done));
  };
  frontend_ = std::make_unique<Frontend>(std::move(frontend));
}

void Coordinator::MakeEngine() {
  EngineOptions engine;
  engine.scheduler.context_tokens = options_.context_tokens;
  engine.scheduler.max_running_sequences = options_.max_running;
  engine.scheduler.max_waiting_sequences = options_.max_queued;
  engine.scheduler.max_rows = options_.max_rows;
  engine.scheduler.inter_token_goal = options_.inter_token_goal;
  engine.scheduler.static_batching = options_.static_batching;
  engine.scheduler.prefix_cache = options_.prefix_cache;
  engine.scheduler.block_hash_key = {RandomBits(), RandomBits()};
  const absl::Span<const TokenId> ends = model_.tokenizer->end_tokens();
  engine.scheduler.end_tokens.assign(ends.begin(), ends.end());
  engine.vocabulary_size = model_.tokenizer->vocabulary_size();
  engine.activation_row_bytes = uint64_t{model_.hyper_parameters.hidden_size} * sizeof(float);
  engine.max_in_flight_limit = options_.max_in_flight;
  engine.on_serving = [this](bool serving) { health_.SetReady(serving); };
  engine.health = &health_;
  engine.canary = model_.tokenizer->bos().value_or(0);
  engine.on_quiet = [this](uint64_t hold) { cluster_->ReportQuiet(hold); };
  engine.on_ring_fault = [this](Epoch epoch, absl::Status why) {
    cluster_->ReportRingFault(epoch, std::move(why));
  };
  engine_ = std::make_unique<Engine>(std::move(engine), frontend_->sink());
  frontend_->SetEngine(engine_.get());
}

// May take minutes.
absl::Status Coordinator::MakeModelSource() {
  const absl::Time begin = Clock::Steady().Now();
  const auto on_turn = [&, said = begin](uint64_t hashed) mutable {
    const absl::Time now = Clock::Steady().Now();
    if (now - said >= absl::Seconds(1)) {
      LogInfo("hashing the model: ", FormatBytes(hashed), " of ", FormatBytes(model_.file->size_bytes()));
      said = now;
    }
    return !stop_asked_.load();
  };
  ASSIGN_OR_RETURN(model_source_, ModelSource::Create(*model_.file, secret_, on_turn));
  LogInfo("hashed ", FormatBytes(model_.file->size_bytes()), " of the model in ",
          absl::FormatDuration(absl::Trunc(Clock::Steady().Now() - begin, absl::Milliseconds(1))),
          ": workers without the file will be sent what they need");
  return absl::OkStatus();
}

void Coordinator::MakeCluster() {
  listener_ = std::make_unique<HopListener>(secret_);
  ClusterControllerOptions cluster;
  cluster.cluster.version = kVersion;
  cluster.cluster.secret = secret_;
  cluster.cluster.model_fingerprint = model_.fingerprint;
  cluster.cluster.placement = placement_;
  cluster.cluster.placement_is_fixed = !options_.layers.empty();
  cluster.cluster.shape = model_.shape;
  cluster.cluster.numeric = options_.numeric;
  cluster.cluster.max_rows = options_.max_rows;
  cluster.cluster.workload = options_.workload;
  cluster.cluster.context_tokens = options_.context_tokens;
  cluster.cluster.worker_timeout = options_.worker_timeout;
  // A Unix socket asks for no certificate: behind it only the join secret keeps others out.
  if (credentials_ == nullptr || !secret_.empty()) unix_address_ = MakeUnixAddress();
  cluster.cluster.unix_address = unix_address_;
  cluster.cluster.host_identity = HostIdentity();
  char* absolute = realpath(options_.model.c_str(), nullptr);
  cluster.health = &health_;
  cluster.drain.replace_within = options_.replacement_wait;
  cluster.model_source = model_source_.get();
  cluster.model_path = absolute == nullptr ? options_.model : absolute;
  free(absolute);
  cluster.max_rows = options_.max_rows;
  cluster.max_in_flight = options_.max_in_flight;
  cluster.block_tokens = options_.block_tokens;
  cluster.context_tokens = options_.context_tokens;
  cluster_ = std::make_unique<ClusterController>(std::move(cluster), engine_.get(), listener_.get());
}

// A last stage on this host hands its results over by the Unix socket.
void Coordinator::AddClusterServices(grpc::ServerBuilder& builder) {
  builder.RegisterService(cluster_->service());
  builder.RegisterService(listener_->service());
  if (!unix_address_.empty()) builder.AddListeningPort(unix_address_, grpc::InsecureServerCredentials());
}

absl::Status Coordinator::BuildClusterServer(CoordinatorAddresses& addresses) {
  grpc::ServerBuilder builder;
  ConfigureServer(builder, size_t{1} << 30);
  int port = 0;
  ASSIGN_OR_RETURN(HostPort address,
                   AddPort(builder, options_.cluster_listen, PeerPortCredentials(credentials_), &port));
  AddClusterServices(builder);
  cluster_server_ = builder.BuildAndStart();
  if (cluster_server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on --cluster-listen ", options_.cluster_listen,
                                               ": the port is in use, or not an address of this host"));
  }
  address.port = static_cast<uint16_t>(port);
  addresses.cluster_listen = address.ToString();
  return absl::OkStatus();
}

absl::StatusOr<CoordinatorAddresses> Coordinator::Listen() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  // Reflection describes what is linked; nothing else refers to the health service's messages.
  grpc::health::v1::HealthCheckRequest::descriptor();
  CoordinatorAddresses addresses;
  const bool one_server = credentials_ == nullptr &&
                          (options_.cluster_listen.empty() || options_.cluster_listen == options_.listen);
  if (!one_server) RETURN_IF_ERROR(BuildClusterServer(addresses));
  grpc::ServerBuilder builder;
  ConfigureServer(builder, Frontend::kMaxMessageBytes);
  int port = 0;
  ASSIGN_OR_RETURN(HostPort address,
                   AddPort(builder, options_.listen, ClientPortCredentials(credentials_), &port));
  frontend_->AddTo(&builder);
  if (one_server) AddClusterServices(builder);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on --listen ", options_.listen,
                                               ": the port is in use, or not an address of this host"));
  }
  address.port = static_cast<uint16_t>(port);
  addresses.listen = address.ToString();
  if (one_server) addresses.cluster_listen = addresses.listen;
  const absl::StatusOr<HostPort> cluster = ParseHostPort(addresses.cluster_listen);
  if (cluster.ok() && !IsLoopback(cluster->host) && secret_.empty() && credentials_ == nullptr) {
    LogWarning("workers may join at ", addresses.cluster_listen,
               " without a secret; use --join-secret-file where others reach that address");
  }
  TellHealth(false);
  health_.OnReadyChange([this](bool ready) { TellHealth(ready); });
  return addresses;
}

absl::Status Coordinator::ServeMetrics(CoordinatorAddresses& addresses) {
  if (options_.metrics.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(
      metrics_, MetricsServer::Start(options_.metrics, [this] {
        return MetricsSnapshot{engine_->Snapshot(), frontend_->request_stats(), frontend_->queued_jobs()};
      }));
  addresses.metrics = metrics_->address();
  return absl::OkStatus();
}

// What clients hear who ask for health where they call.
void Coordinator::TellHealth(bool ready) {
  grpc::HealthCheckServiceInterface* service = server_->GetHealthCheckService();
  if (service == nullptr) return;
  for (const char* name : {"", kReadinessService, kInferenceService}) service->SetServingStatus(name, ready);
}

// Before anything that takes long, and before Listen asks gRPC to add services to every server.
absl::Status Coordinator::ServeHealth() {
  if (options_.health.listen.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(health_server_, HealthServer::Start(options_.health.listen, &health_));
  std::printf("health at %s\n", health_server_->address().c_str());
  std::fflush(stdout);
  return absl::OkStatus();
}

// Written under another name first, so that whoever waits for the file never reads half of it.
absl::Status Coordinator::WriteStatusFile(const CoordinatorAddresses& addresses) const {
  if (options_.status_file.empty()) return absl::OkStatus();
  const std::string part = options_.status_file + ".part";
  std::ofstream file(part);
  file << "{\"listen\": \"" << addresses.listen << "\", \"cluster_listen\": \"" << addresses.cluster_listen
       << (addresses.metrics.empty() ? "" : "\", \"metrics\": \"" + addresses.metrics)
       << (addresses.health.empty() ? "" : "\", \"health\": \"" + addresses.health)
       << "\", \"pid\": " << getpid() << "}\n";
  file.close();
  if (!file || std::rename(part.c_str(), options_.status_file.c_str()) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--status-file ", options_.status_file, ": cannot be written"));
  }
  return absl::OkStatus();
}

// Asked for by a client; may come again.
void Coordinator::BeginDrain() {
  if (drain_told_.exchange(true)) return;
  LogInfo("draining: ", frontend_->live_requests(), " requests in progress, new ones are refused");
  health_.SetDraining(true);
}

void Coordinator::Stop() {
  const absl::Duration grace = Orphaned() ? std::min(options_.grace, kOrphanGrace) : options_.grace;
  LogInfo("stopping", Orphaned() ? ", as the parent process has ended" : "", ": ", frontend_->live_requests(),
          " requests in progress, grace time ", absl::FormatDuration(grace));
  health_.SetDraining(true);
  frontend_->BeginStop();
  if (!frontend_->WaitIdle(grace)) {
    LogWarning("grace time over: cancelling ", frontend_->live_requests(), " requests");
    frontend_->CancelAll(absl::UnavailableError("the server is stopping"));
    frontend_->WaitIdle(absl::Seconds(1));
  }
  cluster_->Stop("the coordinator is stopping", kStopWorkers);
}

absl::Status Coordinator::Run(const std::function<absl::Status(const CoordinatorAddresses&)>& on_listening) {
  SignalWatcher watcher([this](int signal) {
    stop_asked_ = true;
    signals_.Push(signal);
  });
  RETURN_IF_ERROR(ServeHealth());
  const absl::Status prepared = Prepare();
  if (stop_asked_ && absl::IsCancelled(prepared)) {
    LogInfo("stopping, before anything was served");
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(prepared);
  frontend_->Start();
  engine_->Start();
  absl::StatusOr<CoordinatorAddresses> addresses = Listen();
  absl::Status status = addresses.ok() ? ServeMetrics(*addresses) : addresses.status();
  if (status.ok()) {
    cluster_->Start();
    std::printf("listening on %s\n", addresses->listen.c_str());
    if (addresses->cluster_listen != addresses->listen) {
      std::printf("workers join at %s\n", addresses->cluster_listen.c_str());
    }
    if (!addresses->metrics.empty())
      std::printf("metrics at http://%s/metrics\n", addresses->metrics.c_str());
    std::fflush(stdout);
    if (health_server_ != nullptr) addresses->health = health_server_->address();
    status = WriteStatusFile(*addresses);
    health_.SetStarted();
  }
  if (status.ok()) status = on_listening(*addresses);
  if (status.ok()) {
    signals_.Pop();
    Stop();
  }
  if (!options_.status_file.empty()) unlink(options_.status_file.c_str());
  return status;
}

}  // namespace

absl::Status RunCoordinator(const CoordinatorOptions& options,
                            const std::function<absl::Status(const CoordinatorAddresses&)>& on_listening) {
  return Coordinator(options).Run(on_listening);
}

}  // namespace millrace
