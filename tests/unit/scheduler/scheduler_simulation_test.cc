// The scheduler under a simulated ring, clients and virtual clock: whatever is batched, preempted, cancelled
// or lost, each request gives the tokens it would give alone, and ends once.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/scheduler/scheduler.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/deliberate_faults.h"
#include "tests/unit/scheduler/simulated_clients.h"
#include "tests/unit/scheduler/simulated_ring.h"

namespace millrace::testing {
namespace {

const std::vector<TokenId> kEndTokens = {0, 1};

// One run, a pure function of its seed.
class Simulation {
 public:
  // `fault`: what to do to the scheduler's output, if anything, from a random moment on until it is done.
  explicit Simulation(uint64_t seed, const DeliberateFault* fault = nullptr);
  absl::Status Run();
  bool broken() const { return broken_; }
  uint64_t preemptions() const { return scheduler_.load().preemptions; }
  uint64_t finished() const { return scheduler_.load().finished; }
  uint64_t cached() const { return scheduler_.load().prefix_cache_hits; }

 private:
  uint64_t Random(uint64_t n) { return random_() % n; }
  bool Chance(uint64_t percent) { return Random(100) < percent; }
  template <typename T>
  T OneOf(std::initializer_list<T> values) {
    return *(values.begin() + Random(values.size()));
  }
  absl::Duration Gap(absl::Duration mean) { return mean * static_cast<int64_t>(Random(2001)) / 1000; }
  void At(absl::Time time, std::function<void()> what) { events_.emplace(time, std::move(what)); }

  SchedulerOptions MakeOptions();
  RingShape MakeShape();
  SequenceRequest MakeRequest();
  void BeginLikeAnEarlierOne(SequenceRequest* request);
  void Arrive();
  void LoseRing();
  void LeaveRing();
  void Release();
  void StartRing();
  absl::Status TakeActions();
  void MaybeStop(SequenceId id);
  absl::Status Plan();
  absl::Status StepRing();
  absl::Status Settle();
  void Distort(std::vector<StageTimes>& stages);

  bool MayBreak() { return fault_ != nullptr && !broken_ && now_ >= break_after_; }

  std::mt19937_64 random_;
  const DeliberateFault* const fault_;
  bool broken_ = false;
  absl::Time break_after_;
  const SchedulerOptions options_;
  Scheduler scheduler_;
  SimulatedClients clients_;
  std::unique_ptr<SimulatedRing> ring_;
  bool leave_when_quiet_ = false;
  std::multimap<absl::Time, std::function<void()>> events_;
  absl::Time now_ = absl::UnixEpoch();
  absl::Duration arrival_gap_;
  uint64_t to_arrive_;
  uint64_t next_id_ = 1;
  uint32_t long_percent_;
  uint64_t prefix_percent_;  // of prompts that begin like earlier ones
  std::vector<SequenceRequest> earlier_;
  uint64_t max_priority_;  // either way; times are milliseconds, so a level is much
};

Simulation::Simulation(uint64_t seed, const DeliberateFault* fault)
    : random_(seed), fault_(fault), options_(MakeOptions()), scheduler_(options_), clients_(options_) {
  arrival_gap_ = absl::Microseconds(OneOf({0, 200, 2000, 5000}));
  to_arrive_ = 5 + Random(60);
  prefix_percent_ = OneOf<uint64_t>({0, 30, 90});
  max_priority_ = OneOf<uint64_t>({0, 1, 100});
  break_after_ = now_ + absl::Microseconds(seed * 7919 % 100000);
  long_percent_ = static_cast<uint32_t>(OneOf({0, 20, 80}));
  StartRing();
  At(now_, [this] { Arrive(); });
  if (Chance(25)) {
    At(now_ + absl::Milliseconds(Random(300)), [this] { LoseRing(); });
  } else if (Chance(30)) {
    At(now_ + absl::Milliseconds(Random(300)), [this] {
      clients_.OnHold();
      scheduler_.Hold();
      leave_when_quiet_ = Chance(80);
      if (!leave_when_quiet_) At(now_ + absl::Microseconds(Random(50000)), [this] { LeaveRing(); });
    });
  }
}

SchedulerOptions Simulation::MakeOptions() {
  SchedulerOptions options;
  options.context_tokens = OneOf({2u, 30u, 60u, 100u, 200u});
  options.max_running_sequences = OneOf({1u, 3u, 8u, 64u, 64u});
  options.max_waiting_sequences = OneOf({3u, 1024u});
  options.max_rows = OneOf({1u, 2u, 7u, 16u, 48u, 128u});
  options.end_tokens = kEndTokens;
  options.prefix_cache = Chance(80);
  options.static_batching = Chance(8);
  if (Chance(15)) options.inter_token_goal = absl::Microseconds(1 + Random(50000));
  return options;
}

RingShape Simulation::MakeShape() {
  RingShape shape;
  shape.num_stages = static_cast<uint32_t>(1 + Random(Chance(25) ? 16 : 5));
  shape.max_in_flight = Chance(50) ? 4 * shape.num_stages + 4 : static_cast<uint32_t>(1 + Random(20));
  shape.block_tokens = OneOf({1u, 3u, 4u, 16u});
  // From less than one context to plenty; mostly too little for all that could run.
  const uint64_t tokens =
      Chance(20) ? 1 + Random(options_.context_tokens) : options_.context_tokens * (1 + Random(6));
  shape.num_blocks = static_cast<uint32_t>((tokens + shape.block_tokens - 1) / shape.block_tokens);
  // Priors that may be far off.
  if (Chance(30)) shape.hop_seconds = 1e-6 * static_cast<double>(Random(20000));
  while (Chance(40) && shape.stage_costs.size() < shape.num_stages) {
    StageCost cost;
    cost.fixed = 1e-6 * static_cast<double>(Random(5000));
    cost.rows = {{1, 1e-6 * static_cast<double>(Random(1000))},
                 {64, 1e-6 * static_cast<double>(Random(50000))}};
    shape.stage_costs.resize(shape.num_stages, cost);
  }
  return shape;
}

SequenceRequest Simulation::MakeRequest() {
  SequenceRequest request;
  request.id = SequenceId(next_id_++);
  const uint64_t longest = Chance(3) ? options_.context_tokens + 2 : options_.context_tokens - 1;
  const uint64_t length =
      Chance(long_percent_) ? 1 + Random(longest) : 1 + Random(std::min<uint64_t>(longest, 12));
  for (uint64_t i = 0; i < length; ++i)
    request.prompt.push_back(static_cast<TokenId>(Random(kToyVocabulary)));
  if (Chance(20)) request.cache_salt = OneOf<std::string>({"a", "b", std::string(1, '\0')});
  BeginLikeAnEarlierOne(&request);
  request.sampling.seed = Random(1000);
  if (Chance(20)) request.sampling.repetition_penalty = 1.1f;
  if (Chance(20)) request.sampling.logprobs = static_cast<uint32_t>(Random(3));
  if (Chance(20)) request.prompt_logprobs = static_cast<uint32_t>(Random(3));
  request.max_tokens = static_cast<uint32_t>(OneOf<uint64_t>({1, 10, 50, 1000, 1000}));
  if (Chance(20)) request.min_tokens = static_cast<uint32_t>(Random(20));
  request.ignore_eos = Chance(60);
  if (Chance(20)) request.stop_token_ids = {static_cast<TokenId>(Random(kToyVocabulary)), 1};
  request.priority =
      static_cast<int32_t>(Random(2 * max_priority_ + 1)) - static_cast<int32_t>(max_priority_);
  if (Chance(15)) request.deadline = now_ + absl::Microseconds(Random(300000));
  return request;
}

// With its prompt or a part of it, often with its answer too: a next turn of a conversation.
void Simulation::BeginLikeAnEarlierOne(SequenceRequest* request) {
  if (!earlier_.empty() && Chance(prefix_percent_)) {
    const SequenceRequest& earlier = earlier_[Random(earlier_.size())];
    std::vector<TokenId> begin = earlier.prompt;
    if (Chance(50)) {
      const ToyOutcome answer = ToyGenerate(earlier, std::min(earlier.max_tokens, 40u), kEndTokens);
      begin.insert(begin.end(), answer.tokens.begin(), answer.tokens.end());
    }
    if (Chance(30)) begin.resize(1 + Random(begin.size()));
    if (Chance(80)) request->cache_salt = earlier.cache_salt;
    begin.resize(std::min<size_t>(begin.size(), options_.context_tokens - 1));
    if (Chance(30)) request->prompt.clear();
    request->prompt.insert(request->prompt.begin(), begin.begin(), begin.end());
    if (Chance(97))
      request->prompt.resize(std::min<size_t>(request->prompt.size(), options_.context_tokens - 1));
  }
}

void Simulation::Arrive() {
  SequenceRequest request = MakeRequest();
  const SequenceId id = request.id;
  earlier_.push_back(request);
  clients_.Add(request, scheduler_.load().waiting, now_);
  scheduler_.Add(std::move(request), now_);
  if (Chance(12)) {
    At(now_ + absl::Microseconds(Random(200000)), [this, id] {
      clients_.Expect(id, absl::StatusCode::kCancelled);
      scheduler_.Cancel(id, absl::CancelledError("cancelled by the client"), now_);
    });
  }
  if (--to_arrive_ > 0) At(now_ + Gap(arrival_gap_), [this] { Arrive(); });
}

void Simulation::StartRing() {
  const RingShape shape = MakeShape();
  ring_ = std::make_unique<SimulatedRing>(shape, [this](uint64_t n) { return Random(n); });
  clients_.OnRingReady(shape);
  scheduler_.OnRingReady(shape, now_);
}

void Simulation::LoseRing() {
  ring_.reset();
  clients_.OnRingLost();
  scheduler_.OnRingLost(absl::UnavailableError("worker 2, stage 1, was lost"), now_);
  At(now_ + absl::Microseconds(Random(20000)), [this] { StartRing(); });
}

// As planned: requests are held. The next ring comes, most often before they are given up.
void Simulation::LeaveRing() {
  ring_.reset();
  clients_.OnRingLost();
  scheduler_.OnRingLost(absl::UnavailableError("worker 2, stage 1, left"), now_);
  const absl::Duration until_ring = absl::Microseconds(Random(50000));
  At(now_ + until_ring, [this] { StartRing(); });
  At(now_ + (Chance(20) ? until_ring / 2 : until_ring + absl::Microseconds(Random(5000))),
     [this] { Release(); });
}

void Simulation::Release() {
  clients_.OnRelease();
  scheduler_.Release(absl::UnavailableError("no worker came"), now_);
}

// A stop string is found by another thread: the call comes a little later.
void Simulation::MaybeStop(SequenceId id) {
  if (Random(200) != 0) return;
  At(now_ + absl::Microseconds(Random(3000)), [this, id] {
    const auto it = clients_.live().find(id);
    if (it == clients_.live().end()) {
      scheduler_.StopAt(id, 1, now_);
      return;
    }
    const uint32_t tokens = static_cast<uint32_t>(1 + Random(it->second.received));
    clients_.ExpectStop(id, tokens);
    scheduler_.StopAt(id, tokens, now_);
  });
}

absl::Status Simulation::TakeActions() {
  std::vector<SchedulerAction> actions = scheduler_.TakeActions();
  if (MayBreak() && fault_->in_actions) broken_ = fault_->in_actions(actions);
  for (const SchedulerAction& action : actions) {
    RETURN_IF_ERROR(clients_.OnAction(action, now_));
    if (const auto* token = std::get_if<TokenReady>(&action)) MaybeStop(token->sequence);
  }
  return clients_.CheckEnds();
}

absl::Status Simulation::Plan() {
  while (auto plan = scheduler_.PlanNext(now_)) {
    scheduler_.CheckInvariants();
    if (MayBreak() && fault_->in_plan) broken_ = fault_->in_plan(*plan);
    RETURN_IF_ERROR(clients_.OnPlan(*plan, now_));
    std::vector<SimulatedRing::Known> known;
    for (const PlanSegment& segment : plan->segments) {
      known.push_back(
          {clients_.TokensOf(segment.sequence), clients_.live().at(segment.sequence).request.cache_salt});
    }
    ring_->Send(*std::move(plan), std::move(known), now_);
  }
  scheduler_.CheckInvariants();
  return clients_.CheckProgress(scheduler_.load());
}

// Stamps come from workers: they may be anything.
void Simulation::Distort(std::vector<StageTimes>& stages) {
  StageTimes& stage = stages[Random(stages.size())];
  const double odd[] = {-1, 0, 1e-12, 3599, 1e300, std::nan(""), -std::numeric_limits<double>::infinity()};
  stage.busy = odd[Random(std::size(odd))];
  if (Chance(50)) stage.resident = odd[Random(std::size(odd))];
  if (Chance(10)) stages.pop_back();
}

absl::Status Simulation::StepRing() {
  RETURN_IF_ERROR(ring_->Step());
  for (SimulatedRing::Result& result : ring_->TakeResults()) {
    clients_.OnLanded(result.id);
    if (Chance(3)) Distort(result.stages);
    scheduler_.OnStageTimes(result.id, result.stages, now_);
    RETURN_IF_ERROR(scheduler_.OnResult(result.id, std::move(result.results), now_));
  }
  return absl::OkStatus();
}

absl::Status Simulation::Settle() {
  scheduler_.CheckInvariants();
  RETURN_IF_ERROR(TakeActions());
  // Now and then the engine holds back, as it does when its reader is behind; it asks again within the next
  // events.
  if (Chance(10) && scheduler_.load().in_flight > 0) return absl::OkStatus();
  RETURN_IF_ERROR(Plan());
  return TakeActions();
}

absl::Status Simulation::Run() {
  while (true) {
    const absl::Time ring_time = ring_ ? ring_->NextEventTime() : absl::InfiniteFuture();
    const absl::Time event_time = events_.empty() ? absl::InfiniteFuture() : events_.begin()->first;
    const absl::Time deadline = scheduler_.NextDeadline();
    const absl::Time next = std::min({ring_time, event_time, deadline});
    if (next == absl::InfiniteFuture()) break;
    now_ = next;
    if (deadline == next) {
      clients_.ExpectDeadlines(now_);
      scheduler_.Tick(now_);
    } else if (event_time == next) {
      const auto what = std::move(events_.begin()->second);
      events_.erase(events_.begin());
      what();
    } else {
      RETURN_IF_ERROR(StepRing());
    }
    RETURN_IF_ERROR(Settle());
    if (leave_when_quiet_ && scheduler_.load().begun() == 0) {
      leave_when_quiet_ = false;
      At(now_, [this] { LeaveRing(); });
    }
  }
  if (!clients_.live().empty() || !scheduler_.idle()) return absl::InternalError("something never ends");
  if (scheduler_.load().blocks_used != 0) return absl::InternalError("blocks are leaked");
  if (clients_.ended() != next_id_ - 1) return absl::InternalError("not every request ended");
  return absl::OkStatus();
}

constexpr uint64_t kSeedsPerShard = 1000;
// A sanitizer, which is ten times slower, sees the first of each shard.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MILLRACE_SANITIZED
#endif
#endif
#if defined(MILLRACE_SANITIZED)
constexpr uint64_t kSeedsRun = 60;
#else
constexpr uint64_t kSeedsRun = kSeedsPerShard;
#endif

class SchedulerSimulationTest : public ::testing::TestWithParam<uint64_t> {};

// MILLRACE_SIMULATION_SEED=N runs that seed alone, in whichever shard is asked for.
TEST_P(SchedulerSimulationTest, EveryRequestGivesTheTokensItWouldGiveAlone) {
  uint64_t first = GetParam() * kSeedsPerShard + 1;
  uint64_t last = first + kSeedsRun - 1;
  if (const char* seed = std::getenv("MILLRACE_SIMULATION_SEED")) {
    ASSERT_TRUE(absl::SimpleAtoi(seed, &first)) << seed;
    last = first;
  }
  uint64_t preemptions = 0;
  uint64_t finished = 0;
  uint64_t cached = 0;
  for (uint64_t seed = first; seed <= last; ++seed) {
    Simulation simulation(seed);
    const absl::Status status = simulation.Run();
    ASSERT_TRUE(status.ok()) << status << "\nreplay with MILLRACE_SIMULATION_SEED=" << seed;
    preemptions += simulation.preemptions();
    finished += simulation.finished();
    cached += simulation.cached();
  }
  if (last - first + 1 < kSeedsPerShard) return;  // too few for what follows
  RecordProperty("preemptions", std::to_string(preemptions));
  RecordProperty("finished", std::to_string(finished));
  EXPECT_GT(preemptions, 500u) << "the runs are too easy";
  EXPECT_GT(finished, 10000u) << "the runs are too short";
  RecordProperty("cached", std::to_string(cached));
  EXPECT_GT(cached, 20000u) << "prompts have too little in common";
}

INSTANTIATE_TEST_SUITE_P(Shards, SchedulerSimulationTest, ::testing::Range<uint64_t>(0, 10));

// Every run that the fault could be put into must fail.
TEST(SchedulerFaultTest, EveryDeliberateFaultIsFound) {
  constexpr uint64_t kRuns = 25;
  for (const DeliberateFault& fault : DeliberateFaults()) {
    uint64_t broken = 0;
    for (uint64_t seed = 1; broken < kRuns && seed <= 40 * kRuns; ++seed) {
      Simulation simulation(seed, &fault);
      const absl::Status status = simulation.Run();
      if (!simulation.broken()) continue;
      ++broken;
      EXPECT_FALSE(status.ok()) << fault.name << ": not noticed with seed " << seed;
    }
    EXPECT_EQ(broken, kRuns) << fault.name << ": too rarely possible";
  }
}

}  // namespace
}  // namespace millrace::testing
