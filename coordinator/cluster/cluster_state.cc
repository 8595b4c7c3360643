#include "coordinator/cluster/cluster_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/error_reason.h"
#include "common/transport/secret.h"
#include "coordinator/cluster/loading_progress.h"
#include "coordinator/planner/stage_costs.h"

namespace millrace {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(200);
constexpr absl::Duration kLongestPause = absl::Seconds(10);
constexpr absl::Duration kSuspicion = absl::Milliseconds(300);

absl::Duration PauseAfter(int failures) {
  absl::Duration pause = kFirstPause;
  for (int i = 1; i < failures && pause < kLongestPause; ++i) pause *= 2;
  return std::min(pause, kLongestPause);
}

}  // namespace

ClusterState::ClusterState(ClusterOptions options)
    : options_(std::move(options)), ranges_(options_.placement), stages_(options_.placement.size()) {}

absl::Status ClusterState::CheckHello(const WorkerHello& hello) const {
  if (!SecretsEqual(hello.secret, options_.secret)) return absl::PermissionDeniedError("wrong join secret");
  if (hello.version != options_.version) {
    return absl::FailedPreconditionError(absl::StrCat("the worker is Millrace ", hello.version,
                                                      ", the coordinator ", options_.version,
                                                      "; use the same build everywhere"));
  }
  if (!hello.model_fingerprint.empty() && hello.model_fingerprint != options_.model_fingerprint) {
    return absl::FailedPreconditionError(absl::StrCat("the worker has another model: fingerprint ",
                                                      hello.model_fingerprint, ", the coordinator's is ",
                                                      options_.model_fingerprint));
  }
  if (!hello.stage.has_value()) return absl::OkStatus();
  if (*hello.stage >= num_stages()) {
    return absl::InvalidArgumentError(
        absl::StrCat("there is no stage ", *hello.stage, "; stages are 0 to ", num_stages() - 1));
  }
  if (stages_[*hello.stage].valid()) {
    return absl::AlreadyExistsError(
        absl::StrCat("stage ", *hello.stage, " is held by ", Describe(stages_[*hello.stage])));
  }
  return absl::OkStatus();
}

absl::Status ClusterState::CheckKvType(const WorkerHello& hello) const {
  const std::vector<KvType>& types = hello.kv_types;
  if (std::find(types.begin(), types.end(), options_.numeric.kv) != types.end()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the worker (", hello.numeric_class, ") cannot keep keys and values as ",
      KvTypeName(options_.numeric.kv), ", only as ",
      absl::StrJoin(types, ", ",
                    [](std::string* out, KvType type) { absl::StrAppend(out, KvTypeName(type)); }),
      "; the coordinator's --kv-type chooses for all"));
}

absl::Status ClusterState::CheckNumeric(const WorkerHello& hello) const {
  const std::vector<ActivationType>& types = hello.activation_types;
  if (std::find(types.begin(), types.end(), options_.numeric.activations) != types.end()) {
    return CheckKvType(hello);
  }
  const absl::string_view chosen = ActivationTypeName(options_.numeric.activations);
  return absl::FailedPreconditionError(absl::StrCat(
      "the worker cannot compute with ", chosen, " activations, only with ",
      absl::StrJoin(
          types, ", ",
          [](std::string* out, ActivationType type) { absl::StrAppend(out, ActivationTypeName(type)); }),
      "; the coordinator's --activations chooses for all"));
}

void ClusterState::OnHello(WorkerId worker, WorkerHello hello, absl::Time now) {
  absl::Status status = CheckHello(hello);
  if (status.ok()) {
    status = CheckNumeric(hello);
    // Others are waited for in vain if they are alike, so the state names it.
    if (!status.ok()) last_refusal_ = absl::StrCat("refused ", hello.host, ": ", status.message());
  }
  if (!status.ok()) {
    actions_.push_back(RefuseWorker{worker, status});
    return;
  }
  Worker& record = workers_[worker];
  record.hello = std::move(hello);
  record.last_heard = now;
  actions_.push_back(WelcomeWorker{worker});
  FillStages(now);
}

std::optional<uint32_t> ClusterState::FreeStage() const {
  for (uint32_t stage = 0; stage < num_stages(); ++stage) {
    if (!stages_[stage].valid()) return stage;
  }
  return std::nullopt;
}

// Workers that asked for a stage come first, so that one that takes any does not take theirs.
void ClusterState::FillStages(absl::Time now) {
  for (auto& [id, worker] : workers_) {
    if (worker.stage.has_value() || !worker.hello.stage.has_value()) continue;
    if (stages_[*worker.hello.stage].valid()) continue;
    worker.stage = worker.hello.stage;
    stages_[*worker.stage] = id;
  }
  for (auto& [id, worker] : workers_) {
    const std::optional<uint32_t> free = FreeStage();
    if (!free.has_value()) break;
    if (worker.stage.has_value() || worker.hello.stage.has_value()) continue;
    worker.stage = free;
    stages_[*free] = id;
  }
  BeginIfReady(now);
}

void ClusterState::BeginIfReady(absl::Time now) {
  if (phase_ != Phase::kWaiting || FreeStage().has_value()) return;
  if (now < resume_at_ && resume_at_ != absl::InfiniteFuture()) {
    phase_ = Phase::kPausing;
  } else if (AllMeasured() && Place()) {
    StartEpoch();
  }
}

// Asks those that have not measured; all at once, as they are to measure at the same time.
bool ClusterState::AllMeasured() {
  bool all = true;
  for (uint32_t stage = 0; stage < num_stages(); ++stage) {
    Worker& worker = workers_.at(stages_[stage]);
    if (!worker.hello.measures || worker.profile.has_value()) continue;
    all = false;
    if (worker.measure_asked) continue;
    worker.measure_asked = true;
    actions_.push_back(MeasureWorker{stages_[stage], CoresOf(stage), num_stages() == 1});
  }
  return all;
}

void ClusterState::OnProfile(WorkerId worker, WorkerProfile profile, absl::Time now) {
  const auto it = workers_.find(worker);
  if (it == workers_.end()) return;
  absl::Status status = CheckProfile(profile);
  if (!it->second.measure_asked || it->second.profile.has_value()) {
    status = absl::InvalidArgumentError("a profile that was not asked for");
  }
  if (!status.ok()) {
    actions_.push_back(RefuseWorker{worker, status});
    LoseWorker(worker, "sent a profile that cannot be", now);
    return;
  }
  it->second.profile = std::move(profile);
  BeginIfReady(now);
}

// Decides which worker holds what; false if that cannot be, until the workers change.
bool ClusterState::Place() {
  misfit_.clear();
  if (options_.shape == nullptr) return true;
  PlacementInput input;
  input.shape = options_.shape.get();
  input.max_rows = options_.max_rows;
  input.context_tokens = options_.context_tokens;
  input.workload = options_.workload;
  if (options_.placement_is_fixed) input.fixed = options_.placement;
  for (const WorkerId id : stages_) {
    const Worker& worker = workers_.at(id);
    input.workers.push_back(
        {worker.profile, worker.hello.memory_bytes, worker.hello.kv_memory_bytes, worker.hello.stage});
  }
  if (!placed_.empty()) {
    input.previous = ranges_;
    for (const WorkerId before : placed_) {
      const auto it = std::find(stages_.begin(), stages_.end(), before);
      input.previous_worker.push_back(it == stages_.end() ? std::nullopt
                                                          : std::optional<size_t>(it - stages_.begin()));
    }
  }
  absl::StatusOr<StagePlacement> placement = PlaceStages(input);
  if (!placement.ok()) {
    misfit_ = std::string(placement.status().message());
    return false;
  }
  const std::vector<WorkerId> workers = stages_;
  for (uint32_t stage = 0; stage < num_stages(); ++stage) {
    stages_[stage] = workers[placement->workers[stage]];
    workers_.at(stages_[stage]).stage = stage;
  }
  ranges_ = placement->ranges;
  placed_ = stages_;
  forecast_ = *std::move(placement);
  return true;
}

void ClusterState::StartEpoch() {
  phase_ = Phase::kLoading;
  resume_at_ = absl::InfiniteFuture();
  suspicion_ = absl::OkStatus();
  const Epoch epoch(++epoch_);
  actions_.push_back(BeginEpoch{epoch});
  for (uint32_t stage = 0; stage < num_stages(); ++stage) {
    Worker& worker = workers_.at(stages_[stage]);
    worker.loaded.reset();
    worker.ready = false;
    worker.bytes_done = worker.bytes_total = 0;
    const bool last = stage + 1 == num_stages();
    actions_.push_back(AssignStage{stages_[stage], epoch, stage, ranges_[stage],
                                   last ? "" : workers_.at(stages_[stage + 1]).hello.ring_address,
                                   NextUnixAddress(stage), CoresOf(stage)});
  }
}

CoreShare ClusterState::CoresOf(uint32_t stage) const {
  const WorkerHello& hello = workers_.at(stages_[stage]).hello;
  CoreShare share;
  if (hello.machine.empty()) return share;
  share.count = 0;
  for (const WorkerId id : stages_) {
    const WorkerHello& other = workers_.at(id).hello;
    if (other.machine != hello.machine || other.cores != hello.cores) continue;
    if (id < stages_[stage]) ++share.index;
    ++share.count;
  }
  return share;
}

// Of the receiver of the stage's output, if both are on one host.
std::string ClusterState::NextUnixAddress(uint32_t stage) const {
  const std::string& from = workers_.at(stages_[stage]).hello.host_identity;
  const bool last = stage + 1 == num_stages();
  const WorkerHello* const next = last ? nullptr : &workers_.at(stages_[stage + 1]).hello;
  const std::string& to = last ? options_.host_identity : next->host_identity;
  if (from.empty() || from != to) return "";
  return last ? options_.unix_address : next->unix_address;
}

bool ClusterState::InEpoch(WorkerId worker, Epoch epoch) const {
  const auto it = workers_.find(worker);
  return it != workers_.end() && it->second.stage.has_value() && epoch == Epoch(epoch_) &&
         phase_ != Phase::kWaiting && phase_ != Phase::kPausing;
}

void ClusterState::OnHeard(WorkerId worker, absl::Time now) {
  const auto it = workers_.find(worker);
  if (it != workers_.end()) it->second.last_heard = now;
}

void ClusterState::OnProgress(WorkerId worker, uint64_t done, uint64_t total) {
  const auto it = workers_.find(worker);
  if (it == workers_.end()) return;
  it->second.bytes_done = done;
  it->second.bytes_total = total;
}

void ClusterState::OnLoaded(WorkerId worker, const WorkerLoaded& loaded, absl::Time now) {
  if (!InEpoch(worker, loaded.epoch) || phase_ != Phase::kLoading) return;
  if (loaded.model_fingerprint != options_.model_fingerprint) {
    actions_.push_back(
        RefuseWorker{worker, absl::FailedPreconditionError(absl::StrCat(
                                 "the worker loaded another model: fingerprint ", loaded.model_fingerprint,
                                 ", the coordinator's is ", options_.model_fingerprint))});
    LoseWorker(worker, "loaded another model", now);
    return;
  }
  workers_.at(worker).loaded = loaded;
  ActivateIfLoaded();
}

void ClusterState::ActivateIfLoaded() {
  kv_blocks_ = UINT32_MAX;
  for (const WorkerId id : stages_) {
    const std::optional<WorkerLoaded>& loaded = workers_.at(id).loaded;
    if (!loaded.has_value()) return;
    kv_blocks_ = std::min(kv_blocks_, loaded->kv_blocks);
  }
  phase_ = Phase::kActivating;
  for (const WorkerId id : stages_) actions_.push_back(ActivateStage{id, Epoch(epoch_), kv_blocks_});
}

void ClusterState::OnReady(WorkerId worker, Epoch epoch, const std::string& hop) {
  if (!InEpoch(worker, epoch) || phase_ != Phase::kActivating) return;
  workers_.at(worker).ready = true;
  workers_.at(worker).hop = hop;
  const bool all =
      std::all_of(stages_.begin(), stages_.end(), [&](WorkerId id) { return workers_.at(id).ready; });
  if (!all) return;
  phase_ = Phase::kServing;
  failed_in_a_row_ = 0;
  last_failure_.clear();
  last_refusal_.clear();
  RingUp up{Epoch(epoch_), stages_, {}, kv_blocks_, StageCosts()};
  for (const WorkerId id : stages_) up.stages.push_back(StageOf(id));
  actions_.push_back(std::move(up));
}

void ClusterState::OnAssignFailed(WorkerId worker, Epoch epoch, const std::string& why, absl::Time now) {
  if (!InEpoch(worker, epoch)) return;
  FailEpoch(RetryLater(absl::StatusCode::kUnavailable, "STAGE_FAILED",
                       absl::StrCat(Describe(worker), " cannot hold its stage: ", why)),
            now);
}

void ClusterState::OnStageFailed(WorkerId worker, Epoch epoch, const std::string& why, absl::Time now) {
  if (!InEpoch(worker, epoch)) return;
  Suspect(RetryLater(absl::StatusCode::kUnavailable, "STAGE_FAILED",
                     absl::StrCat(Describe(worker), " failed: ", why)),
          now);
}

void ClusterState::Suspect(const absl::Status& why, absl::Time now) {
  if (!suspicion_.ok()) return;
  suspicion_ = why;
  suspicion_ends_ = now + kSuspicion;
}

void ClusterState::OnRingFault(Epoch epoch, const std::string& why, absl::Time now) {
  if (epoch != Epoch(epoch_) || phase_ != Phase::kServing) return;
  FailEpoch(absl::UnavailableError(why), now);
}

// Ends the epoch; the next one begins after a pause, or as soon as every stage has a worker again.
void ClusterState::FailEpoch(const absl::Status& why, absl::Time now) {
  const bool had_epoch = phase_ != Phase::kWaiting && phase_ != Phase::kPausing;
  if (had_epoch) actions_.push_back(RingDown{Epoch(epoch_), why});
  suspicion_ = absl::OkStatus();
  last_failure_ = std::string(why.message());
  resume_at_ = now + PauseAfter(++failed_in_a_row_);
  phase_ = FreeStage().has_value() ? Phase::kWaiting : Phase::kPausing;
}

void ClusterState::LoseWorker(WorkerId id, const std::string& how, absl::Time now) {
  const auto it = workers_.find(id);
  if (it == workers_.end()) return;
  const std::string who = Describe(id);
  const std::optional<uint32_t> stage = it->second.stage;
  workers_.erase(it);
  if (!stage.has_value()) return;
  stages_[*stage] = WorkerId();
  const bool had_epoch = phase_ != Phase::kWaiting && phase_ != Phase::kPausing;
  if (had_epoch) {
    const absl::Status why =
        RetryLater(absl::StatusCode::kUnavailable, "WORKER_LOST", absl::StrCat(who, " was lost: ", how));
    actions_.push_back(RingDown{Epoch(epoch_), why});
    last_failure_ = std::string(why.message());
  }
  suspicion_ = absl::OkStatus();
  // The fault left with the worker: its successor need not wait.
  resume_at_ = absl::InfiniteFuture();
  phase_ = Phase::kWaiting;
  FillStages(now);
}

void ClusterState::OnGone(WorkerId worker, const std::string& how, absl::Time now) {
  LoseWorker(worker, how, now);
}

void ClusterState::Tick(absl::Time now) {
  std::vector<WorkerId> silent;
  for (const auto& [id, worker] : workers_) {
    if (now - worker.last_heard > options_.worker_timeout) silent.push_back(id);
  }
  for (const WorkerId id : silent) {
    const std::string how = absl::StrCat("silent for ", absl::FormatDuration(options_.worker_timeout));
    actions_.push_back(RefuseWorker{id, absl::AbortedError(how)});
    LoseWorker(id, how, now);
  }
  if (!suspicion_.ok() && now >= suspicion_ends_) FailEpoch(absl::Status(suspicion_), now);
  if (phase_ == Phase::kPausing && now >= resume_at_) {
    phase_ = Phase::kWaiting;
    BeginIfReady(now);
  }
}

absl::Time ClusterState::NextTick() const {
  absl::Time next = phase_ == Phase::kPausing ? resume_at_ : absl::InfiniteFuture();
  if (!suspicion_.ok()) next = std::min(next, suspicion_ends_);
  for (const auto& [id, worker] : workers_) {
    next = std::min(next, worker.last_heard + options_.worker_timeout + absl::Milliseconds(1));
  }
  return next;
}

std::vector<ClusterAction> ClusterState::TakeActions() {
  return std::exchange(actions_, {});
}

PipelineState ClusterState::state() const {
  switch (phase_) {
    case Phase::kWaiting:
      return PipelineState::kWaitingForWorkers;
    case Phase::kPausing:
    case Phase::kLoading:
    case Phase::kActivating:
      return PipelineState::kLoading;
    case Phase::kServing:
      return PipelineState::kServing;
  }
  return PipelineState::kWaitingForWorkers;
}

std::string ClusterState::Detail() const {
  std::vector<std::string> parts;
  if (phase_ == Phase::kWaiting) {
    std::vector<uint32_t> free;
    for (uint32_t stage = 0; stage < num_stages(); ++stage) {
      if (!stages_[stage].valid()) free.push_back(stage);
    }
    if (!free.empty()) {
      parts.push_back(absl::StrCat("waiting for ", free.size(), " of ", num_stages(), " workers (stage ",
                                   absl::StrJoin(free, ", "), ")"));
      if (!last_refusal_.empty()) parts.push_back(last_refusal_);
    } else {
      parts.push_back(misfit_.empty() ? "the workers measure how fast they are" : misfit_);
    }
  } else if (phase_ == Phase::kLoading || phase_ == Phase::kActivating) {
    LoadingProgress progress;
    for (const WorkerId id : stages_) progress.Add(workers_.at(id).bytes_done, workers_.at(id).bytes_total);
    parts.push_back(progress.Text());
  } else if (phase_ == Phase::kPausing) {
    parts.push_back("trying again soon");
  }
  const bool trying = phase_ == Phase::kLoading || phase_ == Phase::kActivating;
  if (!last_failure_.empty() && (!trying || failed_in_a_row_ > 0)) parts.push_back(last_failure_);
  return absl::StrJoin(parts, "; ");
}

std::string ClusterState::Describe(WorkerId id) const {
  const auto it = workers_.find(id);
  if (it == workers_.end()) return absl::StrCat("worker ", id.value());
  const std::string stage =
      it->second.stage.has_value() ? absl::StrCat("stage ", *it->second.stage) : "spare";
  return absl::StrCat("worker ", id.value(), " (", stage, ", ", it->second.hello.ring_address, ")");
}

std::vector<StageCost> ClusterState::StageCosts() const {
  std::vector<StageCost> costs;
  for (uint32_t stage = 0; stage < num_stages(); ++stage) {
    const std::optional<WorkerProfile>& profile = workers_.at(stages_[stage]).profile;
    if (options_.shape == nullptr || !profile.has_value()) return {};
    costs.push_back(MakeStageCost(*profile, *options_.shape, ranges_[stage]));
  }
  return costs;
}

ClusterSnapshot ClusterState::Snapshot() const {
  ClusterSnapshot snapshot;
  for (const auto& [id, worker] : workers_) {
    WorkerSnapshot& added = snapshot.workers.emplace_back();
    added.id = id;
    added.address = worker.hello.ring_address;
    added.host = worker.hello.host;
    added.numeric_class = NumericClass(worker.hello.numeric_class, options_.numeric);
    added.memory_bytes = worker.hello.memory_bytes;
    added.kv_memory_bytes = worker.hello.kv_memory_bytes;
    added.threads = worker.loaded.has_value() ? worker.loaded->threads : worker.hello.threads;
    added.stage = worker.stage;
    added.profile = worker.profile;
  }
  for (const LayerRange& range : ranges_) snapshot.layers.push_back(range.count);
  if (forecast_.has_value()) {
    snapshot.predicted_imbalance = forecast_->max_over_mean;
    snapshot.imbalance_bound = forecast_->bound;
  }
  return snapshot;
}

StageSnapshot ClusterState::StageOf(WorkerId id) const {
  const Worker& worker = workers_.at(id);
  const LayerRange& layers = ranges_[*worker.stage];
  StageSnapshot snapshot;
  snapshot.worker = absl::StrCat("worker ", id.value(), " at ", worker.hello.ring_address);
  snapshot.first_layer = layers.first;
  snapshot.num_layers = layers.count;
  snapshot.weight_bytes = worker.loaded->weight_bytes;
  snapshot.kv_bytes = worker.loaded->kv_bytes_per_block * kv_blocks_;
  snapshot.activation_bytes = worker.loaded->activation_bytes;
  snapshot.numeric_class = NumericClass(worker.hello.numeric_class, options_.numeric);
  snapshot.kernels = worker.hello.kernels;
  snapshot.threads = worker.loaded->threads;
  snapshot.shards = worker.loaded->shards;
  for (ShardMemory& shard : snapshot.shards) shard.kv_bytes *= kv_blocks_;
  if (forecast_.has_value()) snapshot.predicted_seconds = forecast_->seconds[*worker.stage];
  snapshot.hop = worker.hop;
  return snapshot;
}

}  // namespace millrace
