#include "coordinator/planner/ring_simulator.h"

#include <algorithm>
#include <deque>
#include <map>
#include <utility>

#include "common/check.h"
#include "common/hop_message.h"
#include "coordinator/scheduler/ring_timing.h"

namespace millrace {
namespace {

constexpr TokenId kToken = 7;  // any: the model is not run

int64_t Nanos(absl::Time time) {
  return absl::ToInt64Nanoseconds(time - absl::UnixEpoch());
}

absl::Duration Median(std::vector<absl::Duration> values) {
  if (values.empty()) return absl::ZeroDuration();
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

class Simulator {
 public:
  explicit Simulator(const RingSimulation& simulation)
      : sim_(simulation),
        scheduler_(simulation.scheduler),
        meter_(simulation.shape.num_stages, absl::UnixEpoch()),
        free_at_(simulation.shape.num_stages, absl::UnixEpoch()),
        sequences_(simulation.requests.size()) {
    MILLRACE_CHECK(sim_.shape.stage_costs.size() == sim_.shape.num_stages);
    MILLRACE_CHECK(sim_.hops.size() == sim_.shape.num_stages);
  }

  SimulationResult Run();

 private:
  struct Trip {
    MicrobatchId id;
    std::vector<SequenceResult> results;
    std::vector<StageStamp> stamps;
    uint64_t prefill_rows = 0;
    absl::Time back;
  };
  struct SequenceState {
    absl::Time arrived;
    absl::Time last_token = absl::InfinitePast();
  };

  void PlanAll(bool after_return);
  void Send(const MicrobatchPlan& plan);
  void Return();
  void TakeActions();
  bool Done() const;
  void BeginWindow();
  void Advance(absl::Time to);

  const RingSimulation& sim_;
  Scheduler scheduler_;
  BubbleMeter meter_;
  absl::Time now_ = absl::UnixEpoch();
  std::vector<absl::Time> free_at_;  // by stage
  std::deque<Trip> trips_;           // in the order they come back
  std::vector<SequenceState> sequences_;
  size_t first_tokens_ = 0;
  size_t ended_ = 0;
  uint64_t microbatches_ = 0;
  std::vector<absl::Duration> waits_;  // for first tokens
  std::vector<absl::Duration> gaps_;
  bool in_window_ = false;
  absl::Time window_began_;
  std::vector<StageUse> before_;  // of each stage, when the window began
  absl::Duration flight_time_;    // microbatches in flight x time
  SimulationResult result_;
};

void Simulator::Advance(absl::Time to) {
  if (in_window_) flight_time_ += (to - now_) * static_cast<double>(trips_.size());
  now_ = to;
}

// Stages take microbatches in order; each is ready for the next when the former is computed.
void Simulator::Send(const MicrobatchPlan& plan) {
  const BatchFeatures features = FeaturesOf(plan);
  Trip trip;
  trip.id = plan.id;
  for (const PlanSegment& segment : plan.segments) {
    const bool decode =
        segment.token_ids.size() == 1 && segment.sampling.has_value() && segment.first_position > 0;
    if (!decode) trip.prefill_rows += segment.token_ids.size();
    if (!segment.sampling.has_value()) continue;
    SequenceResult& result = trip.results.emplace_back();
    result.sequence = segment.sequence;
    result.position = segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
    result.token = kToken;
  }
  absl::Time at = now_ + absl::Seconds(sim_.plan_seconds);
  for (uint32_t s = 0; s < sim_.shape.num_stages; ++s) {
    const absl::Time started = std::max(at, free_at_[s]);
    const absl::Duration busy = absl::Seconds(sim_.shape.stage_costs[s].Seconds(features));
    free_at_[s] = started + busy;
    trip.stamps.push_back(
        {Nanos(at), Nanos(started), Nanos(free_at_[s]), Nanos(free_at_[s]), absl::ToInt64Nanoseconds(busy)});
    at = free_at_[s] + absl::Seconds(sim_.hops[s].seconds + sim_.hops[s].row_seconds * plan.rows());
  }
  trip.back = trips_.empty() ? at : std::max(at, trips_.back().back);
  trips_.push_back(std::move(trip));
}

void Simulator::PlanAll(bool after_return) {
  while (auto plan = scheduler_.PlanNext(now_)) {
    const SchedulerLoad load = scheduler_.load();
    PlannedMicrobatch planned;
    planned.id = plan->id;
    planned.time = now_;
    planned.after_return = after_return;
    planned.in_flight = load.in_flight;
    planned.live_sequences = load.running + load.waiting;
    planned.rows = plan->rows();
    planned.segments = static_cast<uint32_t>(plan->segments.size());
    planned.decode_rows = static_cast<uint32_t>(FeaturesOf(*plan).decode_rows);
    meter_.OnPlanned(planned);
    Send(*plan);
  }
  const SchedulerLoad load = scheduler_.load();
  meter_.OnLoad(now_, load.running + load.waiting, load.in_flight);
}

void Simulator::Return() {
  Trip trip = std::move(trips_.front());
  trips_.pop_front();
  std::vector<StageTimes> times;
  for (const StageStamp& stamp : trip.stamps) {
    times.push_back({static_cast<double>(stamp.sent_ns - stamp.received_ns) * 1e-9,
                     static_cast<double>(stamp.ended_ns - stamp.started_ns) * 1e-9});
  }
  scheduler_.OnStageTimes(trip.id, times, now_);
  MILLRACE_CHECK(scheduler_.OnResult(trip.id, std::move(trip.results), now_).ok());
  meter_.OnReturned(trip.id, trip.stamps, now_);
  ++microbatches_;
  if (in_window_) {
    ++result_.microbatches;
    result_.prompt_tokens += trip.prefill_rows;
  }
  TakeActions();
}

void Simulator::TakeActions() {
  for (const SchedulerAction& action : scheduler_.TakeActions()) {
    if (const auto* token = std::get_if<TokenReady>(&action)) {
      SequenceState& sequence = sequences_[token->sequence.value() - 1];
      if (sequence.last_token == absl::InfinitePast()) {
        waits_.push_back(now_ - sequence.arrived);
        ++first_tokens_;
      } else if (in_window_) {
        gaps_.push_back(now_ - sequence.last_token);
      }
      sequence.last_token = now_;
      if (in_window_) ++result_.output_tokens;
    } else if (std::holds_alternative<SequenceFinished>(action)) {
      ++ended_;
    }
  }
}

void Simulator::BeginWindow() {
  in_window_ = true;
  window_began_ = now_;
  for (uint32_t s = 0; s < meter_.stages(); ++s) before_.push_back(meter_.Total(s));
}

StageUse Difference(const StageUse& after, const StageUse& before) {
  StageUse use = after;
  use.busy -= before.busy;
  use.preempted -= before.preempted;
  use.on_the_way -= before.on_the_way;
  for (size_t i = 0; i < kNumIdleCauses; ++i) use.idle.by_cause[i] -= before.idle.by_cause[i];
  use.microbatches -= before.microbatches;
  use.rows -= before.rows;
  return use;
}

bool Simulator::Done() const {
  return ended_ == sim_.requests.size() || (sim_.until_first_end && ended_ > 0) ||
         microbatches_ >= sim_.max_microbatches || result_.output_tokens >= sim_.max_window_tokens ||
         now_ - absl::UnixEpoch() >= sim_.limit;
}

SimulationResult Simulator::Run() {
  scheduler_.OnRingReady(sim_.shape, now_);
  std::multimap<absl::Duration, size_t> arrivals;
  for (size_t i = 0; i < sim_.requests.size(); ++i) arrivals.emplace(sim_.requests[i].arrival, i);
  auto next = arrivals.begin();
  while (!Done()) {
    const absl::Time arrival =
        next == arrivals.end() ? absl::InfiniteFuture() : absl::UnixEpoch() + next->first;
    const absl::Time back = trips_.empty() ? absl::InfiniteFuture() : trips_.front().back;
    // Nothing is under way and nothing will come: what is left can never run.
    if (arrival == absl::InfiniteFuture() && back == absl::InfiniteFuture()) break;
    Advance(std::min(arrival, back));
    if (back <= arrival) Return();
    for (; next != arrivals.end() && absl::UnixEpoch() + next->first <= now_; ++next) {
      SequenceRequest request;
      request.id = SequenceId(next->second + 1);
      // No two begin the same, as that part would not be computed twice.
      request.prompt.assign(sim_.requests[next->second].prompt_tokens, kToken);
      request.prompt[0] = static_cast<TokenId>(next->second + 1);
      request.max_tokens = sim_.requests[next->second].output_tokens;
      request.ignore_eos = true;
      request.sampling.temperature = 0;
      sequences_[next->second].arrived = now_;
      scheduler_.Add(std::move(request), now_);
      TakeActions();
    }
    if (!in_window_ && first_tokens_ >= sim_.warm_up_first_tokens) BeginWindow();
    PlanAll(back <= arrival);
  }
  result_.complete = ended_ == sim_.requests.size();
  result_.first_token = Median(std::move(waits_));
  if (!in_window_) return result_;
  result_.window = now_ - window_began_;
  result_.inter_token = Median(std::move(gaps_));
  if (result_.window > absl::ZeroDuration()) {
    result_.mean_in_flight = absl::FDivDuration(flight_time_, result_.window);
  }
  StageUse sum;
  for (uint32_t s = 0; s < meter_.stages(); ++s) {
    result_.stages.push_back(Difference(meter_.Total(s), before_[s]));
    sum += result_.stages.back();
  }
  result_.bubble = sum.BubbleRatio();
  return result_;
}

}  // namespace

SimulationResult SimulateRing(const RingSimulation& simulation) {
  return Simulator(simulation).Run();
}

}  // namespace millrace
