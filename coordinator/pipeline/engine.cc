#include "coordinator/pipeline/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/error_reason.h"
#include "common/log.h"
#include "common/process.h"
#include "coordinator/pipeline/plan_messages.h"

namespace millrace {
namespace {

// How soon to look again whether the text thread has caught up.
constexpr absl::Duration kSinkPoll = absl::Milliseconds(1);

uint32_t MaxLive(const SchedulerOptions& options) {
  return options.max_running_sequences + options.max_waiting_sequences;
}

// Every live request has at most one arrival, one cancellation and one stop in the queue, every microbatch
// one result: with this capacity a push never finds the queue full, and so nobody ever waits on it.
size_t InboxCapacity(const EngineOptions& options) {
  return size_t{3} * MaxLive(options.scheduler) + options.max_in_flight_limit + 64;
}

// Tokens become indices into the tokenizer's tables further on.
absl::Status CheckTokens(const std::vector<SequenceResult>& results, uint32_t vocabulary_size) {
  const auto known = [&](const TokenLogprobs& logprobs) {
    return logprobs.token < vocabulary_size &&
           std::all_of(logprobs.top.begin(), logprobs.top.end(),
                       [&](const auto& entry) { return entry.first < vocabulary_size; });
  };
  for (const SequenceResult& result : results) {
    if (result.token.value_or(0) >= vocabulary_size ||
        (result.logprobs.has_value() && !known(*result.logprobs)) ||
        !std::all_of(result.prompt_logprobs.begin(), result.prompt_logprobs.end(), known)) {
      return absl::InternalError(absl::StrCat("sequence ", result.sequence.value(),
                                              ": a token outside the vocabulary of ", vocabulary_size));
    }
  }
  return absl::OkStatus();
}

// In floating point, as a hostile difference must not overflow.
std::vector<StageTimes> TimesOf(const std::vector<StageStamp>& stamps) {
  constexpr double kNanosecond = 1e-9;
  const auto seconds = [](int64_t from_ns, int64_t to_ns) {
    return (static_cast<double>(to_ns) - static_cast<double>(from_ns)) * kNanosecond;
  };
  std::vector<StageTimes> times;
  times.reserve(stamps.size());
  for (const StageStamp& stamp : stamps) {
    times.push_back({seconds(stamp.received_ns, stamp.sent_ns), seconds(stamp.started_ns, stamp.ended_ns)});
  }
  return times;
}

}  // namespace

Engine::Engine(EngineOptions options, TokenSink* sink)
    : options_(std::move(options)),
      sink_(sink),
      max_live_(MaxLive(options_.scheduler)),
      inbox_(InboxCapacity(options_)),
      scheduler_(options_.scheduler) {}

Engine::~Engine() {
  Stop();
}

void Engine::Start() {
  thread_ = std::thread([this] {
    NameThread("engine");
    RunLoop();
  });
}

void Engine::Stop() {
  stopping_ = true;
  inbox_.Close();
  if (thread_.joinable()) thread_.join();
}

absl::Status Engine::Submit(SequenceRequest request) {
  if (stopping_) return absl::UnavailableError("the server is stopping");
  if (live_.fetch_add(1) >= max_live_) {
    live_.fetch_sub(1);
    MutexLock lock(&snapshot_mutex_);
    return RetryAfter(RetryLater(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                                 absl::StrCat("the queue is full: ", max_live_, " requests")),
                      snapshot_.retry_after);
  }
  if (!inbox_.TryPush(Event(std::move(request)))) {
    live_.fetch_sub(1);
    return absl::UnavailableError("the server is stopping");
  }
  return absl::OkStatus();
}

// Failed pushes below mean that the engine is stopping, and then it ends every sequence itself.
void Engine::Cancel(SequenceId id, absl::Status why) {
  inbox_.TryPush(Event(CancelEvent{id, std::move(why)}));
}
void Engine::StopAt(SequenceId id, uint32_t output_tokens) {
  inbox_.TryPush(Event(StopAtEvent{id, output_tokens}));
}
void Engine::RingReady(RingConnection ring) {
  inbox_.TryPush(Event(std::move(ring)));
}
void Engine::RingLost(Epoch epoch, absl::Status why) {
  inbox_.TryPush(Event(RingLostEvent{epoch, std::move(why)}));
}
void Engine::Hold(uint64_t number) {
  inbox_.TryPush(Event(HoldEvent{number}));
}
void Engine::Release() {
  inbox_.TryPush(Event(HoldEvent{}));
}
void Engine::SetClockOffset(Epoch epoch, uint32_t stage, absl::Duration offset) {
  MutexLock lock(&clock_mutex_);
  if (epoch != clock_epoch_) clock_offsets_.clear();
  clock_epoch_ = epoch;
  clock_offsets_[stage] = offset;
}
bool Engine::Returned(HopMessage message) {
  return inbox_.TryPush(Event(std::move(message))) || stopping_;
}

void Engine::SetState(PipelineState state, std::string detail) {
  MutexLock lock(&snapshot_mutex_);
  snapshot_.state = state;
  snapshot_.detail = std::move(detail);
}

void Engine::SetCluster(ClusterSnapshot cluster) {
  MutexLock lock(&snapshot_mutex_);
  cluster_ = std::move(cluster);
}

ClusterSnapshot Engine::Cluster() const {
  MutexLock lock(&snapshot_mutex_);
  return cluster_;
}

PipelineSnapshot Engine::Snapshot() const {
  MutexLock lock(&snapshot_mutex_);
  PipelineSnapshot snapshot = snapshot_;
  // The cluster's word that a ring stands may come before the ring itself.
  if (snapshot.state == PipelineState::kServing && !snapshot.proven) {
    snapshot.state = PipelineState::kLoading;
    snapshot.detail = "waiting for the first token to come round the pipeline";
  }
  return snapshot;
}

void Engine::Observe(std::weak_ptr<MicrobatchObserver> observer) {
  MutexLock lock(&observers_mutex_);
  observers_.push_back(std::move(observer));
  observed_.store(true, std::memory_order_release);
}

void Engine::RunLoop() {
  HealthState::Loop turns(options_.health, "engine");
  while (!inbox_.closed() || inbox_.size() > 0) {
    RunOnce();
    turns.Tick();
  }
  const absl::Status stopping = absl::UnavailableError("the server is stopping");
  LoseRing(stopping, options_.clock->Now());
  scheduler_.Release(stopping, options_.clock->Now());
  HandOverActions();
}

void Engine::RunOnce() {
  returned_ = false;
  for (Event& event : inbox_.PopAll(WaitTime())) Handle(std::move(event), options_.clock->Now());
  TakeClockOffsets();
  scheduler_.Tick(options_.clock->Now());
  LookForCanary(options_.clock->Now());
  ReleaseIfDue(options_.clock->Now());
  SendPlans();
  Publish(options_.clock->Now());
  HandOverActions();
  TellIfQuiet();
}

absl::Duration Engine::WaitTime() const {
  const absl::Time deadline = std::min(scheduler_.NextDeadline(), canary_due_);
  const absl::Duration until = deadline == absl::InfiniteFuture()
                                   ? absl::InfiniteDuration()
                                   : std::max(deadline - options_.clock->Now(), absl::ZeroDuration());
  if (held_back_) return std::min(until, kSinkPoll);
  return options_.health == nullptr ? until : std::min(until, kLongestLoopWait);
}

void Engine::Handle(Event event, absl::Time now) {
  if (auto* request = std::get_if<SequenceRequest>(&event)) {
    scheduler_.Add(std::move(*request), now);
  } else if (auto* cancel = std::get_if<CancelEvent>(&event)) {
    scheduler_.Cancel(cancel->id, cancel->why, now);
  } else if (auto* stop = std::get_if<StopAtEvent>(&event)) {
    scheduler_.StopAt(stop->id, stop->output_tokens, now);
  } else if (auto* message = std::get_if<HopMessage>(&event)) {
    OnReturned(*message, now);
  } else if (auto* lost = std::get_if<RingLostEvent>(&event)) {
    if (ring_.has_value() && ring_->epoch == lost->epoch) LoseRing(lost->why, now);
  } else if (auto* hold = std::get_if<HoldEvent>(&event)) {
    OnHold(*hold);
  } else {
    TakeRing(std::move(std::get<RingConnection>(event)), now);
  }
}

void Engine::TakeRing(RingConnection ring, absl::Time now) {
  MILLRACE_CHECK(!ring_.has_value());
  ring_ = std::move(ring);
  active_ = absl::ZeroDuration();
  active_since_.reset();
  meter_.emplace(ring_->shape.num_stages, now);
  scheduler_.OnRingReady(ring_->shape, now);
  proven_ = !options_.canary.has_value();
  if (!proven_) SendCanary(now);
}

void Engine::LoseRing(const absl::Status& why, absl::Time now) {
  if (!ring_.has_value()) return;
  if (!proven_) LogWarning("epoch ", ring_->epoch.value(), " ended before a token had gone round");
  ring_.reset();
  meter_.reset();
  proven_ = false;
  canary_due_ = absl::InfiniteFuture();
  scheduler_.OnRingLost(why, now);
}

void Engine::OnHold(const HoldEvent& event) {
  if (event.number == 0) {
    release_asked_ = true;
    return;
  }
  hold_ = event.number;
  quiet_told_ = release_asked_ = false;
  scheduler_.Hold();
}

void Engine::SendCanary(absl::Time now) {
  const std::optional<MicrobatchPlan> plan = scheduler_.PlanCanary(*options_.canary, now);
  if (!plan.has_value()) return;
  canary_sent_ = now;
  canary_due_ = now + options_.canary_patience;
  ring_->send_plan(ToWirePlan(ring_->epoch, *plan));
}

void Engine::LookForCanary(absl::Time now) {
  if (!ring_.has_value() || proven_ || canary_sent_ == absl::InfinitePast()) return;
  const std::string waited = absl::FormatDuration(absl::Trunc(now - canary_sent_, absl::Microseconds(1)));
  if (!scheduler_.canary_in_flight()) {
    proven_ = true;
    canary_sent_ = absl::InfinitePast();
    canary_due_ = absl::InfiniteFuture();
    LogInfo("epoch ", ring_->epoch.value(), ": a token went round all stages in ", waited);
  } else if (now >= canary_due_) {
    canary_due_ = absl::InfiniteFuture();
    LogWarning("epoch ", ring_->epoch.value(), ": not ready, as no token has come round all stages for ",
               waited, "; look at the logs of the workers");
  }
}

// On the next ring as soon as that is known to turn, so that readiness need not be taken back in between.
void Engine::ReleaseIfDue(absl::Time now) {
  if (!release_asked_ || (ring_.has_value() && !proven_)) return;
  release_asked_ = false;
  hold_ = 0;
  scheduler_.Release(RetryLater(absl::StatusCode::kUnavailable, "NO_REPLACEMENT",
                                "no worker has taken the place of one that left; retry with back-off"),
                     now);
}

void Engine::TellIfQuiet() {
  if (hold_ == 0 || quiet_told_ || scheduler_.load().begun() > 0) return;
  quiet_told_ = true;
  if (options_.on_quiet) options_.on_quiet(hold_);
}

void Engine::TakeClockOffsets() {
  if (!ring_.has_value()) return;
  MutexLock lock(&clock_mutex_);
  if (clock_epoch_ != ring_->epoch) return;
  for (const auto& [stage, offset] : clock_offsets_) {
    if (stage >= ring_->stages.size() || stage >= meter_->stages()) continue;
    meter_->SetClockOffset(stage, offset);
    ring_->stages[stage].clock_offset = offset;
  }
  clock_offsets_.clear();
}

void Engine::OnReturned(const HopMessage& message, absl::Time now) {
  if (!ring_.has_value() || message.epoch != ring_->epoch) return;  // stale: dropped
  absl::StatusOr<std::vector<SequenceResult>> results = ParseResult(message);
  absl::Status status = results.status();
  if (status.ok()) status = CheckTokens(*results, options_.vocabulary_size);
  if (status.ok()) scheduler_.OnStageTimes(message.microbatch, TimesOf(message.stamps), now);
  if (status.ok()) status = scheduler_.OnResult(message.microbatch, *std::move(results), now);
  if (status.ok()) {
    returned_ = true;
    const auto account = meter_->OnReturned(message.microbatch, message.stamps, now);
    if (account != nullptr && observed_.load(std::memory_order_acquire)) TellObservers(*account);
    return;
  }
  LogError("epoch ", message.epoch.value(), ": ", status.message());
  const Epoch epoch = ring_->epoch;
  LoseRing(
      absl::UnavailableError(absl::StrCat("the pipeline gave a result that cannot be: ", status.message())),
      now);
  if (options_.on_ring_fault) options_.on_ring_fault(epoch, status);
}

void Engine::TellObservers(const MicrobatchAccount& account) {
  MutexLock lock(&observers_mutex_);
  observers_.erase(std::remove_if(observers_.begin(), observers_.end(),
                                  [&](const std::weak_ptr<MicrobatchObserver>& weak) {
                                    const std::shared_ptr<MicrobatchObserver> observer = weak.lock();
                                    if (observer != nullptr) observer->OnMicrobatch(ring_->epoch, account);
                                    return observer == nullptr;
                                  }),
                   observers_.end());
  observed_.store(!observers_.empty(), std::memory_order_release);
}

void Engine::CountPlan(const MicrobatchPlan& plan, absl::Time now) {
  const SchedulerLoad load = scheduler_.load();
  PlannedMicrobatch planned;
  planned.id = plan.id;
  planned.time = now;
  planned.after_return = returned_;
  planned.in_flight = load.in_flight;
  planned.live_sequences = load.running + load.waiting - load.held;
  planned.rows = plan.rows();
  planned.segments = static_cast<uint32_t>(plan.segments.size());
  for (const PlanSegment& segment : plan.segments) {
    if (segment.token_ids.size() == 1 && segment.first_position > 0 && segment.sampling.has_value()) {
      ++planned.decode_rows;
    }
  }
  meter_->OnPlanned(planned);
}

void Engine::SendPlans() {
  held_back_ = false;
  if (!ring_.has_value()) return;
  while (true) {
    // Remembered, as there may be room by the time the engine goes to sleep, and then nothing would wake it.
    held_back_ = !sink_->HasRoom();
    if (held_back_) return;
    const absl::Time now = options_.clock->Now();
    const std::optional<MicrobatchPlan> plan = scheduler_.PlanNext(now);
    if (!plan.has_value()) return;
    CountPlan(*plan, now);
    // A stage that cannot be reached is reported by the cluster; until then the plan counts as in flight.
    ring_->send_plan(ToWirePlan(ring_->epoch, *plan));
  }
}

void Engine::MeasureStages(const SchedulerLoad& load, absl::Time now) {
  if (!meter_.has_value()) return;
  meter_->OnLoad(now, load.running + load.waiting - load.held, load.in_flight);
  const std::vector<StageUse> window = meter_->Window(now);
  const size_t stages = std::min(ring_->stages.size(), window.size());
  for (uint32_t i = 0; i < stages; ++i) {
    StageSnapshot& stage = ring_->stages[i];
    stage.total = meter_->Total(i);
    stage.window = window[i];
    if (i + 1 < stages) stage.activation_bytes_sent = stage.total.rows * options_.activation_row_bytes;
  }
}

void Engine::Publish(absl::Time now) {
  const SchedulerLoad load = scheduler_.load();
  if (load.in_flight > 0 && !active_since_.has_value()) active_since_ = now;
  if (load.in_flight == 0 && active_since_.has_value()) {
    active_ += now - *active_since_;
    active_since_.reset();
  }
  MeasureStages(load, now);
  {
    MutexLock lock(&snapshot_mutex_);
    FillSnapshot(load, now);
  }
  // Who is held is not refused.
  const bool serving = proven_ || (serving_ && scheduler_.holding());
  if (std::exchange(serving_, serving) != serving && options_.on_serving) options_.on_serving(serving);
}

void Engine::FillSnapshot(const SchedulerLoad& load, absl::Time now) {
  snapshot_.load = load;
  snapshot_.retry_after = scheduler_.RetryAfter(now);
  snapshot_.mean_hop = meter_.has_value() ? meter_->mean_hop() : absl::ZeroDuration();
  snapshot_.hops = meter_.has_value() ? meter_->hops() : Histogram(kHopBounds);
  snapshot_.epoch = ring_.has_value() ? ring_->epoch.value() : 0;
  snapshot_.proven = proven_;
  snapshot_.holding = scheduler_.holding();
  snapshot_.active = active_ + (active_since_.has_value() ? now - *active_since_ : absl::ZeroDuration());
  snapshot_.stages = ring_.has_value() ? ring_->stages : std::vector<StageSnapshot>();
}

void Engine::HandOverActions() {
  std::vector<SchedulerAction> actions = scheduler_.TakeActions();
  if (actions.empty()) return;
  for (SchedulerAction& action : actions) {
    auto* finished = std::get_if<SequenceFinished>(&action);
    if (finished == nullptr) continue;
    live_.fetch_sub(1);
    // A sequence ends with its ring at the latest, so this is the one that it ran on.
    if (!finished->status.ok() || !ring_.has_value()) continue;
    for (const StageSnapshot& stage : ring_->stages) finished->numeric_classes.push_back(stage.numeric_class);
  }
  sink_->OnActions(std::move(actions));
}

}  // namespace millrace
