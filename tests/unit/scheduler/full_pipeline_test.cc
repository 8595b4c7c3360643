// The point of it all: under load, no stage waits. The real scheduler, a ring of stages with known costs, and
// a virtual clock; the scheduler learns costs and hops from what the stages report.
#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "coordinator/scheduler/ring_timing.h"
#include "coordinator/scheduler/scheduler.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/scheduler_harness.h"

namespace millrace::testing {
namespace {

constexpr double kMs = 1e-3;

struct Load {
  uint32_t sequences = 1;  // kept alive
  uint32_t min_prompt = 8;
  uint32_t max_prompt = 8;
  uint32_t min_output = 1000;
  uint32_t max_output = 1000;
};

struct Ring {
  uint32_t stages = 2;
  double hop = 0.1 * kMs;
  std::vector<double> speeds = {};  // of stages, by which their times are divided; empty: equal
  uint32_t max_in_flight = 0;       // 0: plenty
  double noise = 0;                 // share by which times differ
};

// 2 ms, 0.5 ms a decode, 0.25 ms a prefill row, attention.
double TrueSeconds(const BatchFeatures& f) {
  return 2 * kMs + 0.5 * kMs * f.decode_rows + 0.25 * kMs * f.prefill_rows + 0.2e-6 * f.decode_attention +
         0.2e-6 * f.prefill_attention;
}

struct Usage {
  std::vector<double> idle;  // share of the time, by stage
  uint32_t slots = 0;
  std::vector<double> errors;
  uint64_t output_tokens = 0;
  double longest_gap = 0;  // seconds between two tokens of a sequence

  double least_idle() const { return *std::min_element(idle.begin(), idle.end()); }
};

class LoadedRing {
 public:
  LoadedRing(const Ring& ring, const Load& load, SchedulerOptions options = Options())
      : ring_(ring), load_(load), scheduler_(std::move(options)), stages_(ring.stages) {
    RingShape shape;
    shape.num_stages = ring.stages;
    shape.max_in_flight = ring.max_in_flight == 0 ? 8 * ring.stages + 8 : ring.max_in_flight;
    shape.num_blocks = 200000;
    scheduler_.OnRingReady(shape, Now());
  }

  static SchedulerOptions Options() {
    SchedulerOptions options;
    options.context_tokens = 100000;
    options.max_running_sequences = 1000;
    options.max_waiting_sequences = 1000;
    options.prefix_cache = false;  // prompts begin the same
    return options;
  }

  // Runs `warm_up` and then `measured` microbatches.
  Usage Run(int warm_up, int measured) {
    while (alive_ < load_.sequences) Arrive();
    for (int i = 0; i < warm_up; ++i) Step();
    const double start = now_;
    for (Stage& stage : stages_) stage.busy = 0;
    longest_gap_ = 0;
    const uint64_t tokens = scheduler_.load().output_tokens;
    for (int i = 0; i < measured; ++i) Step();
    Usage usage;
    for (const Stage& stage : stages_) usage.idle.push_back(1 - stage.busy / (now_ - start));
    usage.slots = scheduler_.load().slots;
    usage.errors = scheduler_.load().cost_errors;
    usage.output_tokens = scheduler_.load().output_tokens - tokens;
    usage.longest_gap = longest_gap_;
    return usage;
  }

 private:
  struct Stage {
    double free_at = 0;
    double busy = 0;
  };
  struct Trip {
    MicrobatchPlan plan;
    std::vector<StageTimes> times;
    double back_at = 0;
  };

  absl::Time Now() const { return absl::UnixEpoch() + absl::Seconds(now_); }
  uint32_t Between(uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>(random_() % (high - low + 1));
  }

  void Arrive() {
    SequenceRequest request = MakeRequest(next_id_++, Between(load_.min_prompt, load_.max_prompt),
                                          Between(load_.min_output, load_.max_output));
    scheduler_.Add(std::move(request), Now());
    ++alive_;
  }

  // The whole way of a microbatch is known when it is sent, as stages are first come, first served.
  void Send() {
    while (auto plan = scheduler_.PlanNext(Now())) {
      Trip trip{*std::move(plan), {}, 0};
      const double seconds = TrueSeconds(FeaturesOf(trip.plan));
      double at = now_;  // the plan's way to stage 0 and the result's way back are one hop together
      for (uint32_t s = 0; s < ring_.stages; ++s) {
        const double noise = 1 + ring_.noise * (static_cast<double>(random_() % 2001) / 1000 - 1);
        const double busy = seconds * noise / (ring_.speeds.empty() ? 1 : ring_.speeds[s]);
        const double arrived = at + (s == 0 ? ring_.hop / 2 : ring_.hop);
        const double done = std::max(arrived, stages_[s].free_at) + busy;
        stages_[s].free_at = done;
        stages_[s].busy += busy;
        trip.times.push_back({done - arrived, busy});
        at = done;
      }
      trip.back_at = at + ring_.hop / 2;
      in_flight_.push_back(std::move(trip));
    }
  }

  void Step() {
    Send();
    ASSERT_FALSE(in_flight_.empty());
    const Trip trip = std::move(in_flight_.front());
    in_flight_.pop_front();
    now_ = trip.back_at;
    scheduler_.OnStageTimes(trip.plan.id, trip.times, Now());
    ASSERT_TRUE(scheduler_.OnResult(trip.plan.id, Answer(trip.plan), Now()).ok());
    const Actions actions = Take(scheduler_);
    for (const TokenReady& token : actions.tokens) {
      const auto [it, first] = last_token_.emplace(token.sequence, now_);
      if (!first) longest_gap_ = std::max(longest_gap_, now_ - std::exchange(it->second, now_));
    }
    for (const SequenceFinished& finished : actions.finished) {
      last_token_.erase(finished.sequence);
      --alive_;
      Arrive();
    }
  }

  const Ring ring_;
  const Load load_;
  Scheduler scheduler_;
  std::vector<Stage> stages_;
  std::deque<Trip> in_flight_;
  std::map<SequenceId, double> last_token_;
  double longest_gap_ = 0;
  std::mt19937_64 random_{7};
  double now_ = 0;
  uint64_t next_id_ = 1;
  uint32_t alive_ = 0;
};

// Decodes with a context of 100 make a microbatch of 8 take 6 ms and a little.
constexpr double kStageSeconds = 6.2 * kMs;

// Sequences come and go, eight for each microbatch that the ring needs.
Load Saturated(uint32_t slots) {
  return {8 * slots, 8, 24, 32, 256};
}

struct SteadyCase {
  uint32_t stages;
  double hop;  // in stage times
};

class SteadyTest : public ::testing::TestWithParam<SteadyCase> {};

TEST_P(SteadyTest, LeavesNoBubbleOnTheSlowestStage) {
  const auto [stages, hop] = GetParam();
  const uint32_t needed = static_cast<uint32_t>(std::ceil(stages * (1 + hop)));
  const Ring ring{stages, hop * kStageSeconds};
  const Usage usage = LoadedRing(ring, Saturated(needed)).Run(1500, 3000);
  EXPECT_LE(usage.least_idle(), 0.03);
  EXPECT_NEAR(usage.slots, needed, std::max(1.0, 0.1 * needed));
  ASSERT_EQ(usage.errors.size(), stages);
  for (const double error : usage.errors) EXPECT_LT(error, 0.001);

  Ring as_many_as_stages = ring;
  as_many_as_stages.max_in_flight = stages;
  const Usage naive = LoadedRing(as_many_as_stages, Saturated(needed)).Run(1500, 3000);
  EXPECT_GT(naive.least_idle(), hop > 1 ? 0.3 : 0.05);
  EXPECT_GT(usage.output_tokens, 0u);
}

INSTANTIATE_TEST_SUITE_P(Rings, SteadyTest,
                         ::testing::Values(SteadyCase{2, 0.1}, SteadyCase{4, 0.1}, SteadyCase{8, 0.1},
                                           SteadyCase{16, 0.1}, SteadyCase{2, 2}, SteadyCase{4, 2},
                                           SteadyCase{8, 2}, SteadyCase{16, 2}));

TEST(FullPipelineTest, KeepsTheSlowestOfUnequalStagesBusy) {
  const Ring ring{5, 1 * kMs, {1.2, 1.0, 0.7, 1.1, 0.9}, 0, 0};
  const Usage usage = LoadedRing(ring, Saturated(6)).Run(1500, 3000);
  EXPECT_LE(usage.idle[2], 0.03);
  EXPECT_NEAR(usage.idle[0], 1 - 0.7 / 1.2, 0.03);
  for (const double error : usage.errors) EXPECT_LT(error, 0.001);
}

TEST(FullPipelineTest, StaysFullBesidePromptsOfAllLengths) {
  for (const uint32_t stages : {2u, 4u, 8u}) {
    const Usage usage = LoadedRing({stages, 0.5 * kMs, {}, 0, 0.1}, {200, 32, 1024, 16, 256}).Run(1500, 3000);
    EXPECT_LE(usage.least_idle(), 0.03) << stages;
    // Times differ by 5 % on average from any prediction.
    for (const double error : usage.errors) EXPECT_LT(error, 0.065) << stages;
  }
}

TEST(FullPipelineTest, KeepsTokensWithinTheInterTokenGoal) {
  const Ring ring{2, 0.5 * kMs};
  const Load load{24, 200, 1024, 16, 256};
  EXPECT_GT(LoadedRing(ring, load).Run(1000, 2000).longest_gap, 0.09);
  SchedulerOptions options = LoadedRing::Options();
  options.inter_token_goal = absl::Milliseconds(60);
  const Usage usage = LoadedRing(ring, load, options).Run(1000, 2000);
  EXPECT_LT(usage.longest_gap, 0.06 + 0.03);  // and a slot or two for one left over
  EXPECT_GT(usage.longest_gap, 0.03);
}

}  // namespace
}  // namespace millrace::testing
