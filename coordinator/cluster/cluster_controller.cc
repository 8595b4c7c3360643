#include "coordinator/cluster/cluster_controller.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/process.h"
#include "common/transport/local_socket.h"
#include "common/transport/numeric_messages.h"
#include "common/transport/profile_messages.h"
#include "coordinator/pipeline/plan_messages.h"
#include "coordinator/planner/stage_costs.h"

namespace millrace {
namespace {

constexpr size_t kMaxShards = 64;  // that a worker may tell of
constexpr size_t kEventCapacity = 4096;
constexpr size_t kMaxActivationTypes = 8;
constexpr size_t kMaxKvTypes = 8;

WorkerHello ToHello(const v1::Hello& wire) {
  WorkerHello hello;
  hello.version = wire.version();
  hello.secret = wire.secret();
  hello.ring_address = wire.ring_address();
  hello.model_fingerprint = wire.model_fingerprint();
  if (wire.has_stage()) hello.stage = wire.stage();
  hello.numeric_class = wire.numeric_class();
  hello.host = wire.host();
  hello.measures = wire.measures();
  hello.memory_bytes = wire.memory_bytes();
  hello.kv_memory_bytes = wire.kv_memory_bytes();
  hello.threads = wire.threads();
  // What its neighbour would connect to must be nothing else.
  if (IsUnixAddress(wire.unix_address())) hello.unix_address = wire.unix_address();
  hello.host_identity = wire.host_identity();
  hello.activation_types.clear();
  for (const int type : wire.activation_types()) {
    const std::optional<ActivationType> known = FromWire(static_cast<v1::ActivationType>(type));
    if (known.has_value() && hello.activation_types.size() < kMaxActivationTypes) {
      hello.activation_types.push_back(*known);
    }
  }
  hello.kv_types.clear();
  for (const int type : wire.kv_types()) {
    const std::optional<KvType> known = FromWire(static_cast<v1::KvType>(type));
    if (known.has_value() && hello.kv_types.size() < kMaxKvTypes) hello.kv_types.push_back(*known);
  }
  hello.machine = wire.machine();
  hello.cores = wire.cores();
  hello.kernels = wire.kernels();
  return hello;
}

WorkerLoaded ToLoaded(const v1::Loaded& wire) {
  WorkerLoaded loaded;
  loaded.epoch = Epoch(wire.epoch());
  loaded.model_fingerprint = wire.model_fingerprint();
  loaded.weight_bytes = wire.weight_bytes();
  loaded.activation_bytes = wire.activation_bytes();
  loaded.kv_blocks = wire.kv_blocks();
  loaded.kv_bytes_per_block = wire.kv_bytes_per_block();
  loaded.threads = wire.threads();
  for (const v1::ShardMemory& shard : wire.shards()) {
    if (loaded.shards.size() == kMaxShards) break;
    loaded.shards.push_back({shard.weight_bytes(), shard.kv_bytes_per_block(), shard.activation_bytes()});
  }
  return loaded;
}

// Of v1::Measure or v1::Assign.
template <class Message>
void SetChoice(const NumericChoice& numeric, const CoreShare& cores, Message* message) {
  message->set_activations(ToWire(numeric.activations));
  message->set_kv_type(ToWire(numeric.kv));
  message->mutable_core_share()->set_index(cores.index);
  message->mutable_core_share()->set_count(cores.count);
}

}  // namespace

ClusterController::ClusterController(ClusterControllerOptions options, Engine* engine, HopListener* listener)
    : options_(std::move(options)),
      engine_(engine),
      listener_(listener),
      events_(kEventCapacity),
      service_({[this](std::shared_ptr<WorkerSession> session, v1::WorkerMessage message) {
                  events_.Push(WorkerSaid{std::move(session), std::move(message)});
                },
                [this](WorkerId worker) { events_.Push(WorkerGone{worker}); }},
               options_.model_source),
      state_(options_.cluster),
      drain_(options_.drain) {}

ClusterController::~ClusterController() {
  events_.Close();
  if (thread_.joinable()) thread_.join();
  EndDrains();
}

void ClusterController::Start() {
  PublishState();
  thread_ = std::thread([this] {
    NameThread("cluster");
    RunLoop();
  });
}

void ClusterController::Stop(const std::string& reason, absl::Duration grace) {
  events_.Push(StopAsked{reason, Clock::Steady().Now() + grace});
  if (thread_.joinable()) thread_.join();
}

void ClusterController::ReportRingFault(Epoch epoch, absl::Status why) {
  events_.Push(RingFault{epoch, std::move(why)});
}

void ClusterController::Drain(std::optional<uint32_t> stage, absl::Duration wait, DrainDone done) {
  if (events_.Push(DrainAsked{stage, wait, done})) return;
  done(absl::UnavailableError("the coordinator is stopping"));
}

void ClusterController::ReportAllIdle() {
  events_.TryPush(AllIdle{});
}

void ClusterController::ReportQuiet(uint64_t hold) {
  events_.TryPush(RingQuiet{hold});
}

void ClusterController::RunLoop() {
  HealthState::Loop turns(options_.health, "cluster");
  while (!events_.closed()) {
    turns.Tick();
    for (Event& event : events_.PopAll(WaitTime())) Handle(std::move(event));
    const absl::Time now = Clock::Steady().Now();
    if (stop_until_.has_value()) {
      if (sessions_.empty() || now >= *stop_until_) break;
      continue;
    }
    state_.Tick(now);
    for (const ClusterAction& action : state_.TakeActions()) CarryOut(action);
    StepDrain(now);
    PublishState();
  }
  // Only now: workers that still run would take the end of their hop for a failure.
  listener_->ClearSession();
  for (auto& [id, session] : sessions_) session->End(absl::UnavailableError("the coordinator has stopped"));
  // Sessions that end later find a closed queue.
  events_.Close();
  EndDrains();
}

absl::Duration ClusterController::WaitTime() const {
  const absl::Time next =
      stop_until_.has_value() ? *stop_until_ : std::min(state_.NextTick(), drain_.NextTick());
  const absl::Duration longest = options_.health == nullptr ? absl::InfiniteDuration() : kLongestLoopWait;
  if (next == absl::InfiniteFuture()) return longest;
  return std::clamp(next - Clock::Steady().Now(), absl::ZeroDuration(), longest);
}

void ClusterController::Handle(Event event) {
  const absl::Time now = Clock::Steady().Now();
  if (auto* said = std::get_if<WorkerSaid>(&event)) {
    HandleMessage(said->session, said->message);
  } else if (auto* gone = std::get_if<WorkerGone>(&event)) {
    sessions_.erase(gone->worker);
    state_.OnGone(gone->worker, "its control stream ended", now);
  } else if (auto* fault = std::get_if<RingFault>(&event)) {
    state_.OnRingFault(fault->epoch, std::string(fault->why.message()), now);
  } else if (auto* drain = std::get_if<DrainAsked>(&event)) {
    BeginDrain(std::move(*drain));
  } else if (std::holds_alternative<AllIdle>(event)) {
    drain_.OnAllIdle();
  } else if (auto* quiet = std::get_if<RingQuiet>(&event)) {
    drain_.OnQuiet(quiet->hold, now);
  } else {
    BeginStop(std::get<StopAsked>(event));
  }
}

void ClusterController::BeginDrain(DrainAsked asked) {
  const absl::Time now = Clock::Steady().Now();
  if (stop_until_.has_value()) return asked.done(absl::UnavailableError("the coordinator is stopping"));
  if (asked.stage.has_value() && *asked.stage >= state_.num_stages()) {
    return asked.done(absl::InvalidArgumentError(
        absl::StrCat("there is no stage ", *asked.stage, "; stages are 0 to ", state_.num_stages() - 1)));
  }
  const uint64_t call = ++last_drain_;
  drains_.emplace(call, std::move(asked.done));
  if (!asked.stage.has_value()) return drain_.OnDrainAll(call, asked.wait, now);
  const WorkerId worker = state_.WorkerOf(*asked.stage);
  LogInfo("stage ", *asked.stage, " is drained: ",
          worker.valid() ? absl::StrCat("worker ", worker.value(), " is to leave") : "it has no worker");
  drain_.OnDrainWorker(call, worker, asked.wait, now);
}

void ClusterController::StepDrain(absl::Time now) {
  for (const WorkerId worker : drain_.leaving()) {
    if (!state_.Has(worker)) drain_.OnGone(worker, now);
  }
  drain_.Tick(now);
  for (const DrainAction& action : drain_.TakeActions()) {
    if (const auto* hold = std::get_if<HoldRequests>(&action)) {
      engine_->Hold(hold->number);
    } else if (std::holds_alternative<ReleaseRequests>(action)) {
      LogInfo("requests are no longer held");
      engine_->Release();
    } else {
      const AnswerDrain& answer = std::get<AnswerDrain>(action);
      const auto waiting = drains_.extract(answer.call);
      if (!waiting.empty()) waiting.mapped()(answer.finished);
    }
  }
}

void ClusterController::AnswerDrains() {
  for (const auto& [call, done] : drains_) done(absl::UnavailableError("the coordinator is stopping"));
  drains_.clear();
}

// Nobody may be left without an answer, whose event nobody will handle either.
void ClusterController::EndDrains() {
  for (Event& event : events_.PopAll(absl::ZeroDuration())) {
    if (auto* drain = std::get_if<DrainAsked>(&event)) {
      drain->done(absl::UnavailableError("the coordinator is stopping"));
    }
  }
  AnswerDrains();
}

void ClusterController::BeginStop(const StopAsked& stop) {
  stop_until_ = stop.until;
  AnswerDrains();
  engine_->SetState(PipelineState::kStopping, stop.reason);
  for (auto& [id, session] : sessions_) {
    v1::CoordinatorMessage message;
    message.mutable_shutdown()->set_reason(stop.reason);
    session->Send(std::move(message));
  }
}

void ClusterController::HandleHello(const std::shared_ptr<WorkerSession>& session, const v1::Hello& hello) {
  if (stop_until_.has_value()) return session->End(absl::UnavailableError("the coordinator is stopping"));
  if (!sessions_.emplace(session->id(), session).second) {
    return session->End(absl::InvalidArgumentError("a second hello"));
  }
  LogInfo("worker ", session->id().value(), " from ", hello.host(), " (process ", hello.process_id(), ", ",
          hello.ring_address(), ", ", hello.kernels(), ")");
  state_.OnHello(session->id(), ToHello(hello), Clock::Steady().Now());
}

void ClusterController::HandleMessage(const std::shared_ptr<WorkerSession>& session,
                                      const v1::WorkerMessage& message) {
  const absl::Time now = Clock::Steady().Now();
  const WorkerId worker = session->id();
  if (message.has_hello()) return HandleHello(session, message.hello());
  if (sessions_.count(worker) == 0)
    return session->End(absl::InvalidArgumentError("the first message must be hello"));
  state_.OnHeard(worker, now);
  switch (message.message_case()) {
    case v1::WorkerMessage::kHeartbeat:
      return ShareClock(worker);
    case v1::WorkerMessage::kProfile:
      return state_.OnProfile(worker, FromWire(message.profile(), static_cast<int>(kMaxProfilePoints)), now);
    case v1::WorkerMessage::kLoaded:
      return state_.OnLoaded(worker, ToLoaded(message.loaded()), now);
    case v1::WorkerMessage::kReady:
      return state_.OnReady(worker, Epoch(message.ready().epoch()),
                            message.ready().hop() == "unix" ? "unix" : "tcp");
    case v1::WorkerMessage::kLoadProgress:
      return state_.OnProgress(worker, message.load_progress().bytes_done(),
                               message.load_progress().bytes_total());
    case v1::WorkerMessage::kAssignFailed:
      return state_.OnAssignFailed(worker, Epoch(message.assign_failed().epoch()),
                                   message.assign_failed().message(), now);
    case v1::WorkerMessage::kStageFailed:
      return state_.OnStageFailed(worker, Epoch(message.stage_failed().epoch()),
                                  message.stage_failed().message(), now);
    case v1::WorkerMessage::kGoodbye:
      return state_.OnGone(worker, "it was stopped", now);
    default:
      return;
  }
}

void ClusterController::CarryOut(const ClusterAction& action) {
  if (const auto* welcome = std::get_if<WelcomeWorker>(&action)) {
    Welcome(welcome->worker);
  } else if (const auto* refuse = std::get_if<RefuseWorker>(&action)) {
    LogWarning("worker ", refuse->worker.value(), " is refused: ", refuse->why.message());
    const auto it = sessions_.find(refuse->worker);
    if (it != sessions_.end()) it->second->End(refuse->why);
  } else if (const auto* measure = std::get_if<MeasureWorker>(&action)) {
    Measure(*measure);
  } else if (const auto* begin = std::get_if<BeginEpoch>(&action)) {
    LogForecast();
    OpenHops(begin->epoch);
  } else if (const auto* assign = std::get_if<AssignStage>(&action)) {
    Assign(*assign);
  } else if (const auto* activate = std::get_if<ActivateStage>(&action)) {
    v1::CoordinatorMessage message;
    message.mutable_activate()->set_epoch(activate->epoch.value());
    message.mutable_activate()->set_kv_blocks(activate->kv_blocks);
    Send(activate->worker, std::move(message));
  } else if (const auto* up = std::get_if<RingUp>(&action)) {
    RaiseRing(*up);
  } else if (const auto* down = std::get_if<RingDown>(&action)) {
    LogWarning("epoch ", down->epoch.value(), " ended: ", down->why.message());
    ring_workers_.clear();
    listener_->ClearSession();
    engine_->RingLost(down->epoch, down->why);
  }
}

void ClusterController::Welcome(WorkerId worker) {
  v1::CoordinatorMessage message;
  v1::Welcome* welcome = message.mutable_welcome();
  welcome->set_worker_id(worker.value());
  welcome->set_model_path(options_.model_path);
  if (options_.model_source != nullptr) {
    welcome->set_manifest_sha256(options_.model_source->manifest_sha256());
  }
  welcome->set_model_fingerprint(options_.cluster.model_fingerprint);
  welcome->set_heartbeat_millis(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.heartbeat)));
  Send(worker, std::move(message));
}

void ClusterController::Measure(const MeasureWorker& action) {
  v1::CoordinatorMessage message;
  v1::Measure* measure = message.mutable_measure();
  measure->set_max_rows(options_.max_rows);
  measure->set_context_tokens(options_.context_tokens);
  measure->set_block_tokens(options_.block_tokens);
  measure->set_brief(action.brief);
  SetChoice(options_.cluster.numeric, action.cores, measure);
  Send(action.worker, std::move(message));
}

void ClusterController::LogForecast() const {
  const std::optional<StagePlacement>& forecast = state_.forecast();
  if (!forecast.has_value()) return;
  std::vector<std::string> stages;
  for (size_t s = 0; s < forecast->ranges.size(); ++s) {
    stages.push_back(forecast->measured ? absl::StrFormat("%d layers %.2f ms", forecast->ranges[s].count,
                                                          forecast->seconds[s] * 1e3)
                                        : absl::StrFormat("%d layers", forecast->ranges[s].count));
  }
  LogInfo("placement by ", forecast->measured ? "measured time of 16 decodes" : "matrix elements", ": ",
          absl::StrJoin(stages, ", "), "; slowest / mean ", absl::StrFormat("%.3f", forecast->max_over_mean),
          ", whole layers allow ", absl::StrFormat("%.3f", forecast->bound));
}

void ClusterController::OpenHops(Epoch epoch) {
  HopSession session;
  session.epoch = epoch;
  session.limits.max_rows = options_.max_rows;
  session.limits.max_stamps = static_cast<uint32_t>(options_.cluster.placement.size());
  session.limits.max_payload_bytes = MaxResultBytes(options_.max_rows);
  session.deliver = [engine = engine_](HopMessage message) { return engine->Returned(std::move(message)); };
  listener_->SetSession(std::move(session));
}

void ClusterController::Assign(const AssignStage& action) {
  v1::CoordinatorMessage message;
  v1::Assign* assign = message.mutable_assign();
  assign->set_epoch(action.epoch.value());
  assign->set_stage(action.stage);
  assign->set_num_stages(static_cast<uint32_t>(options_.cluster.placement.size()));
  assign->set_first_layer(action.layers.first);
  assign->set_num_layers(action.layers.count);
  assign->set_block_tokens(options_.block_tokens);
  assign->set_max_rows(options_.max_rows);
  assign->set_max_in_flight(options_.max_in_flight);
  assign->set_next_address(action.next_address);
  assign->set_next_unix_address(action.next_unix_address);
  assign->set_max_context_tokens(options_.context_tokens);
  SetChoice(options_.cluster.numeric, action.cores, assign);
  Send(action.worker, std::move(message));
}

void ClusterController::RaiseRing(const RingUp& action) {
  RingConnection ring;
  ring.epoch = action.epoch;
  ring.shape = {static_cast<uint32_t>(action.workers.size()), options_.max_in_flight, action.kv_blocks,
                options_.block_tokens};
  ring.shape.stage_costs = action.stage_costs;
  ring.stages = action.stages;
  std::vector<std::shared_ptr<WorkerSession>> sessions;
  for (const WorkerId worker : action.workers) {
    const auto it = sessions_.find(worker);
    if (it != sessions_.end()) sessions.push_back(it->second);
  }
  ring.send_plan = [sessions = std::move(sessions)](const v1::Plan& plan) {
    bool sent = true;
    for (const std::shared_ptr<WorkerSession>& session : sessions) {
      v1::CoordinatorMessage message;
      *message.mutable_plan() = plan;
      sent = session->Send(std::move(message)) && sent;
    }
    return sent;
  };
  LogInfo("epoch ", action.epoch.value(), ": serving with ", action.workers.size(), " stages, KV cache of ",
          action.kv_blocks, " blocks of ", options_.block_tokens, " tokens");
  engine_->RingReady(std::move(ring));
  drain_.OnRingUp();
  ring_epoch_ = action.epoch;
  ring_workers_ = action.workers;
  for (const WorkerId worker : action.workers) ShareClock(worker);
}

void ClusterController::ShareClock(WorkerId worker) {
  const auto stage = std::find(ring_workers_.begin(), ring_workers_.end(), worker);
  const auto session = sessions_.find(worker);
  if (stage == ring_workers_.end() || session == sessions_.end()) return;
  const std::optional<absl::Duration> offset = session->second->clock_offset();
  if (!offset.has_value()) return;
  engine_->SetClockOffset(ring_epoch_, static_cast<uint32_t>(stage - ring_workers_.begin()), *offset);
}

void ClusterController::Send(WorkerId worker, v1::CoordinatorMessage message) {
  const auto it = sessions_.find(worker);
  if (it != sessions_.end()) it->second->Send(std::move(message));
}

void ClusterController::PublishState() {
  ClusterSnapshot cluster = state_.Snapshot();
  cluster.max_rows = options_.max_rows;
  cluster.max_in_flight = options_.max_in_flight;
  cluster.block_tokens = options_.block_tokens;
  cluster.context_tokens = options_.context_tokens;
  cluster.kv_type = options_.cluster.numeric.kv;
  engine_->SetCluster(std::move(cluster));
  const PipelineState state = state_.state();
  std::string detail = state_.Detail();
  const std::string held = drain_.Detail();
  if (!held.empty()) absl::StrAppend(&detail, detail.empty() ? "" : "; ", held);
  if (state == published_state_ && detail == published_detail_) return;
  if (state != published_state_ && options_.on_state) options_.on_state(state);
  if (state != PipelineState::kServing && detail != published_detail_) LogInfo(detail);
  published_state_ = state;
  published_detail_ = std::move(detail);
  engine_->SetState(published_state_, published_detail_);
}

}  // namespace millrace
