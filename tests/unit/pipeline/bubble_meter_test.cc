// Time lines made by hand, one for each cause, and random ones for what must hold of all.
#include "coordinator/pipeline/bubble_meter.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr absl::Time kStart = absl::UnixEpoch();

absl::Time At(double millis) {
  return kStart + absl::Milliseconds(millis);
}

// Milliseconds on the coordinator's clock.
struct Visit {
  double received, started, ended;
  double sent = -1;  // -1: as it ended
};

// Plays plans and returns to a meter, in milliseconds. `offsets`: of the stages' clocks, told to the meter.
class Player {
 public:
  explicit Player(uint32_t stages, std::vector<double> offsets = {})
      : meter_(stages, kStart), offsets_(std::move(offsets)) {
    offsets_.resize(stages);
    for (uint32_t i = 0; i < stages; ++i) meter_.SetClockOffset(i, absl::Milliseconds(offsets_[i]));
  }

  void Load(double now, uint32_t live, uint32_t in_flight) { meter_.OnLoad(At(now), live, in_flight); }
  void Plan(double now, bool after_return, uint32_t in_flight = 1) {
    PlannedMicrobatch planned;
    planned.id = MicrobatchId(++planned_);
    planned.time = At(now);
    planned.after_return = after_return;
    planned.in_flight = in_flight;
    planned.rows = 3;
    meter_.OnPlanned(planned);
  }
  std::shared_ptr<const MicrobatchAccount> Return(double now, const std::vector<Visit>& visits) {
    std::vector<StageStamp> stamps;
    for (size_t i = 0; i < visits.size(); ++i) {
      const auto nanos = [&](double millis) { return std::llround((millis + offsets_[i]) * 1e6); };
      const Visit& visit = visits[i];
      const double sent = visit.sent < 0 ? visit.ended : visit.sent;
      stamps.push_back({nanos(visit.received), nanos(visit.started), nanos(visit.ended), nanos(sent),
                        std::llround((visit.ended - visit.started) * 1e6)});
    }
    return meter_.OnReturned(MicrobatchId(++returned_), stamps, At(now));
  }
  double Idle(uint32_t stage, IdleCause cause) const {
    return absl::ToDoubleMilliseconds(meter_.Total(stage).idle[cause]);
  }
  double AllIdle(uint32_t stage) const {
    return absl::ToDoubleMilliseconds(meter_.Total(stage).idle.Total());
  }

  BubbleMeter meter_;

 private:
  std::vector<double> offsets_;
  uint64_t planned_ = 0;
  uint64_t returned_ = 0;
};

TEST(BubbleMeterTest, CountsBusyPreemptedAndRows) {
  BubbleMeter meter(1, kStart);
  PlannedMicrobatch planned;
  planned.id = MicrobatchId(1);
  planned.time = kStart;
  planned.rows = 7;
  meter.OnPlanned(planned);
  const StageStamp stamp{0, 1000, 5000, 5500, 3000};
  ASSERT_NE(meter.OnReturned(MicrobatchId(1), {stamp}, kStart + absl::Microseconds(9)), nullptr);
  EXPECT_EQ(meter.Total(0).busy, absl::Nanoseconds(4000));
  EXPECT_EQ(meter.Total(0).preempted, absl::Nanoseconds(1000));
  EXPECT_EQ(meter.Total(0).rows, 7u);
  EXPECT_EQ(meter.Total(0).microbatches, 1u);
  // Nothing came before the first, so there is no gap, though it waited since the epoch began.
  EXPECT_EQ(meter.Total(0).idle.Total(), absl::ZeroDuration());
  EXPECT_EQ(meter.mean_hop(), absl::Nanoseconds(9000 - 5500));
}

TEST(BubbleMeterTest, TimeWithoutSequencesIsNoBubble) {
  Player play(1);
  play.Plan(0, false);
  play.Load(0, 1, 1);
  play.Return(10, {{0, 0, 10}});
  play.Load(10, 0, 0);
  play.Plan(110, false);
  play.Return(121, {{111, 111, 121}});
  EXPECT_EQ(play.Idle(0, IdleCause::kNoWork), 100);
  EXPECT_EQ(play.Idle(0, IdleCause::kCommunication), 1);  // the plan's way
  EXPECT_EQ(play.AllIdle(0), 101);
  EXPECT_DOUBLE_EQ(play.meter_.Total(0).BubbleRatio(), 1.0 / 21);
}

TEST(BubbleMeterTest, HandingOnIsBackPressure) {
  Player play(1);
  for (int i = 0; i < 2; ++i) {
    play.Plan(0, false, 2);
    play.Load(0, 2, 2);
  }
  play.Return(14, {{0, 0, 10, 14}});
  play.Return(30, {{0, 14, 24}});
  EXPECT_EQ(play.Idle(0, IdleCause::kBackPressured), 4);
  EXPECT_EQ(play.AllIdle(0), 4);
}

TEST(BubbleMeterTest, WhatIsThereAndNotYetBegunIsCommunication) {
  Player play(1);
  for (int i = 0; i < 2; ++i) {
    play.Plan(0, false, 2);
    play.Load(0, 2, 2);
  }
  play.Return(11, {{0, 0, 10}});
  play.Return(24, {{12, 13, 23}});
  // Two on the way, though not seen to be: planned long before, so the plan's way covers it; one of waking.
  EXPECT_EQ(play.Idle(0, IdleCause::kCommunication), 3);
  EXPECT_EQ(play.AllIdle(0), 3);
}

// One sequence on p equal stages: each waits for the others, 1 - 1/p.
TEST(BubbleMeterTest, OneSequenceLeavesTooFewMicrobatches) {
  constexpr uint32_t kStages = 4;
  Player play(kStages);
  double now = 0;
  for (int round = 0; round < 201; ++round) {
    play.Plan(now, round > 0);
    play.Load(now, 1, 1);
    std::vector<Visit> visits;
    for (uint32_t i = 0; i < kStages; ++i) {
      visits.push_back({now, now, now + 5});
      now += 5;
    }
    play.Return(now, visits);
    play.Load(now, 1, 0);
  }
  for (uint32_t i = 0; i < kStages; ++i) {
    EXPECT_EQ(play.Idle(i, IdleCause::kTooFewMicrobatches), 200 * 15);
    EXPECT_EQ(play.AllIdle(i), 200 * 15);
    EXPECT_NEAR(play.meter_.Total(i).BubbleRatio(), 1 - 1.0 / kStages, 0.002);
  }
}

// The same with hops of 2: they are communication, the rest is not.
TEST(BubbleMeterTest, HopsOfOneSequenceAreCommunication) {
  Player play(2, {1000000, -77});
  for (int round = 0; round < 11; ++round) {
    const double now = round * 14.0;
    play.Plan(now, round > 0);
    play.Load(now, 1, 1);
    play.Return(now + 14, {{now + 2, now + 2, now + 7}, {now + 9, now + 9, now + 12}});
    play.Load(now + 14, 1, 0);
  }
  for (uint32_t i = 0; i < 2; ++i) {
    EXPECT_EQ(play.Idle(i, IdleCause::kCommunication), 10 * 6);
    EXPECT_EQ(play.Idle(i, IdleCause::kTooFewMicrobatches), 10 * (i == 0 ? 3 : 5));
  }
  EXPECT_EQ(play.meter_.mean_hop(), absl::Milliseconds(3));
}

// m = p microbatches, evenly apart, on equal stages of time t = 8 with hops of c = 2: c / (t + c) is left.
TEST(BubbleMeterTest, EnoughMicrobatchesLeaveTheHop) {
  Player play(2);
  play.Plan(-10, false);
  play.Load(-10, 9, 1);
  play.Plan(0, false, 2);
  play.Load(0, 9, 2);
  for (int k = 0; k < 100; ++k) {
    const double planned = 10.0 * k - 10;
    play.Return(planned + 20,
                {{planned + 1, planned + 1, planned + 9}, {planned + 11, planned + 11, planned + 19}});
    play.Plan(planned + 20, true, 2);
    play.Load(planned + 20, 9, 2);
  }
  for (uint32_t i = 0; i < 2; ++i) {
    // The second was planned while the first computed on stage 0, which is no way.
    EXPECT_EQ(play.Idle(i, IdleCause::kCommunication), 99 * 2 - (i == 0 ? 1 : 0));
    EXPECT_EQ(play.AllIdle(i), 99 * 2);
    EXPECT_NEAR(play.meter_.Total(i).BubbleRatio(), 0.2, 0.002);
  }
}

// Stage 1 takes 10, stage 0 takes 6: stage 0 has nothing to do for 4 of each 10.
TEST(BubbleMeterTest, AFasterStageWaitsOutOfImbalance) {
  Player play(2);
  play.Plan(0, false);
  play.Plan(0, false, 2);
  play.Load(0, 9, 2);
  play.Return(16, {{0, 0, 6}, {6, 6, 16}});
  play.Plan(16, true, 2);
  play.Load(16, 9, 2);
  play.Return(26, {{0, 6, 12}, {12, 16, 26}});
  for (int k = 1; k < 100; ++k) {
    const double returned = 10.0 * k + 6;
    play.Plan(returned + 10, true, 2);
    play.Load(returned + 10, 9, 2);
    play.Return(returned + 20,
                {{returned, returned, returned + 6}, {returned + 6, returned + 10, returned + 20}});
  }
  EXPECT_EQ(play.Idle(1, IdleCause::kImbalance), 0);
  EXPECT_EQ(play.AllIdle(1), 0);
  EXPECT_EQ(play.AllIdle(0), 99 * 4);
  EXPECT_NEAR(play.Idle(0, IdleCause::kImbalance), 99 * 4, 1e-3);
}

// The same stages, each microbatch 4 later than it could be: what imbalance explains is used up by then.
TEST(BubbleMeterTest, ImbalanceExplainsNoMoreThanTheDifference) {
  Player play(2);
  for (int k = 0; k < 100; ++k) {
    const double begin = 14.0 * k;
    play.Plan(begin, false, 2);
    play.Load(begin, 9, 2);
    play.Return(begin + 16, {{begin, begin, begin + 6}, {begin + 6, begin + 6, begin + 16}});
  }
  EXPECT_EQ(play.AllIdle(0), 99 * 8);
  EXPECT_NEAR(play.Idle(0, IdleCause::kImbalance), 99 * 4, 1e-3);
  EXPECT_NEAR(play.Idle(0, IdleCause::kStarved), 99 * 4, 8);
  EXPECT_EQ(play.Idle(1, IdleCause::kImbalance), 0);
}

// Equal stages on the whole, but every other microbatch takes thrice as long, so that each stage waits.
TEST(BubbleMeterTest, UnequalMicrobatchesStarve) {
  Player play(2);
  play.Plan(0, false);
  play.Plan(0, false, 2);
  play.Load(0, 9, 2);
  double now = 0;
  for (int k = 0; k < 50; ++k) {
    // Each pair: 9 then 3 on stage 0, and on stage 1 as it comes.
    play.Return(now + 18, {{now, now, now + 9}, {now + 9, now + 9, now + 18}});
    play.Return(now + 21, {{now, now + 9, now + 12}, {now + 12, now + 18, now + 21}});
    now += 21;
    play.Plan(now, true, 2);
    play.Plan(now, true, 2);
    play.Load(now, 9, 2);
  }
  EXPECT_EQ(play.AllIdle(0), 49 * 9);
  EXPECT_EQ(play.Idle(0, IdleCause::kStarved), 49 * 9);
  EXPECT_EQ(play.Idle(0, IdleCause::kTooFewMicrobatches), 0);
}

// m microbatches at once into an empty pipeline, again and again: (p - 1) / (m + p - 1).
TEST(BubbleMeterTest, OneShotsLeaveTheirFormula) {
  constexpr int kStages = 3, kBatch = 5;
  Player play(kStages);
  double now = 0;
  for (int shot = 0; shot < 101; ++shot) {
    play.Load(now, 0, 0);
    now += 1000;
    for (int k = 0; k < kBatch; ++k) play.Plan(now, false, k + 1);
    play.Load(now, kBatch, kBatch);
    for (int k = 0; k < kBatch; ++k) {
      std::vector<Visit> visits;
      for (int i = 0; i < kStages; ++i) {
        const double start = now + 4.0 * (i + k);
        visits.push_back({i == 0 ? now : start, start, start + 4});
      }
      play.Return(now + 4.0 * (k + kStages), visits);
    }
    now += 4.0 * (kBatch + kStages - 1);
  }
  for (uint32_t i = 0; i < kStages; ++i) {
    EXPECT_EQ(play.Idle(i, IdleCause::kNoWork), 100 * 1000);
    EXPECT_NEAR(play.meter_.Total(i).BubbleRatio(), (kStages - 1.0) / (kBatch + kStages - 1), 0.01);
  }
}

TEST(BubbleMeterTest, NeedsMoreInFlightTheLongerTheHops) {
  Player play(2);
  EXPECT_EQ(play.meter_.NeededInFlight(), 2u);
  play.Plan(0, false);
  play.Return(60, {{10, 10, 20}, {40, 40, 50}});  // t 10, c 20: 2 (10 + 20) / 10
  EXPECT_EQ(play.meter_.NeededInFlight(), 6u);
}

TEST(BubbleMeterTest, TheWindowForgets) {
  Player play(1);
  play.Plan(0, false);
  play.Return(10, {{0, 0, 10}});
  play.Plan(5000, false);
  play.Return(5020, {{5000, 5000, 5020}});
  EXPECT_EQ(play.meter_.Window(At(5020))[0].busy, absl::Milliseconds(30));
  EXPECT_EQ(play.meter_.Window(At(10011))[0].busy, absl::Milliseconds(20));
  EXPECT_EQ(play.meter_.Window(At(99999))[0].microbatches, 0u);
  EXPECT_EQ(play.meter_.Total(0).busy, absl::Milliseconds(30));
}

TEST(BubbleMeterTest, StampsThatAreMissingLeaveNoGap) {
  Player play(2);
  for (int k = 0; k < 3; ++k) play.Plan(0, false, k + 1);
  play.Return(100, {{0, 0, 10}, {10, 10, 20}});
  EXPECT_NE(play.Return(200, {{10, 30, 40}}), nullptr);
  play.Return(300, {{10, 50, 60}, {60, 60, 70}});
  EXPECT_EQ(play.AllIdle(0), 30);
  EXPECT_EQ(play.AllIdle(1), 0);
  EXPECT_EQ(play.meter_.Total(1).microbatches, 2u);
}

TEST(BubbleMeterTest, WhatWasNotPlannedIsNotCounted) {
  BubbleMeter meter(1, kStart);
  EXPECT_EQ(meter.OnReturned(MicrobatchId(1), {StageStamp{0, 1, 2, 3, 4}}, At(1)), nullptr);
  EXPECT_EQ(meter.Total(0).microbatches, 0u);
}

class BubbleMeterPropertyTest : public ::testing::TestWithParam<uint64_t> {};

// Whatever stamps say: nothing negative or longer than the time there was, and the causes add up.
TEST_P(BubbleMeterPropertyTest, HostileStampsDoNoHarm) {
  std::mt19937_64 random(GetParam());
  const uint32_t stages = 1 + random() % 5;
  BubbleMeter meter(stages, kStart);
  const auto number = [&]() -> int64_t {
    switch (random() % 6) {
      case 0:
        return std::numeric_limits<int64_t>::min();
      case 1:
        return std::numeric_limits<int64_t>::max();
      case 2:
        return static_cast<int64_t>(random());
      default:
        return static_cast<int64_t>(random() % 1000000000);
    }
  };
  absl::Time now = kStart;
  uint64_t planned = 0, returned = 0;
  std::vector<StageUse> sums(stages);
  for (int step = 0; step < 400; ++step) {
    now += absl::Nanoseconds(static_cast<int64_t>(random() % 10000000));
    if (random() % 8 == 0) meter.SetClockOffset(random() % 8, absl::Nanoseconds(number()));
    meter.OnLoad(now, random() % 4, static_cast<uint32_t>(planned - returned));
    if (planned == returned || random() % 2 == 0) {
      PlannedMicrobatch plan;
      plan.id = MicrobatchId(++planned);
      plan.time = now;
      plan.after_return = random() % 2 == 0;
      plan.in_flight = static_cast<uint32_t>(planned - returned);
      meter.OnPlanned(plan);
      continue;
    }
    std::vector<StageStamp> stamps(random() % (stages + 2));
    for (StageStamp& stamp : stamps) stamp = {number(), number(), number(), number(), number()};
    const auto account = meter.OnReturned(MicrobatchId(++returned), stamps, now);
    ASSERT_NE(account, nullptr);
    for (uint32_t i = 0; i < stages; ++i) {
      for (absl::Duration part : account->visits[i].idle.by_cause) ASSERT_GE(part, absl::ZeroDuration());
      ASSERT_LE(account->visits[i].idle.Total(), now - kStart);
      ASSERT_GE(account->visits[i].preempted, absl::ZeroDuration());
      ASSERT_GE(account->visits[i].on_the_way, absl::ZeroDuration());
      sums[i].idle += account->visits[i].idle;
    }
    ASSERT_GE(account->mean_hop, absl::ZeroDuration());
    ASSERT_GE(meter.NeededInFlight(), stages);
    ASSERT_LE(meter.NeededInFlight(), 1024u);
  }
  for (uint32_t i = 0; i < stages; ++i) {
    const StageUse& total = meter.Total(i);
    EXPECT_EQ(total.idle.Total(), sums[i].idle.Total());
    EXPECT_GE(total.busy, total.preempted);
    EXPECT_LE(total.busy, (now - kStart) * static_cast<int64_t>(returned));
    EXPECT_GE(total.BubbleRatio(), 0.0);
    EXPECT_LE(total.BubbleRatio(), 1.0);
  }
}

// True stamps of a ring with random times: busy and idle fill each stage's time line without rest.
TEST_P(BubbleMeterPropertyTest, BusyAndIdleFillTheTimeLine) {
  std::mt19937_64 random(GetParam());
  const uint32_t stages = 1 + random() % 5;
  BubbleMeter meter(stages, kStart);
  std::vector<int64_t> first(stages), free(stages), offsets(stages);
  for (uint32_t i = 0; i < stages; ++i) {
    offsets[i] = static_cast<int64_t>(random() % 2000000) - 1000000;
    meter.SetClockOffset(i, absl::Nanoseconds(offsets[i]));
  }
  int64_t now = 0;
  for (uint64_t id = 1; id <= 200; ++id) {
    now += static_cast<int64_t>(random() % 5000);
    PlannedMicrobatch plan;
    plan.id = MicrobatchId(id);
    plan.time = kStart + absl::Nanoseconds(now);
    plan.after_return = random() % 2 == 0;
    plan.in_flight = 1;
    meter.OnLoad(plan.time, random() % 3, 0);
    meter.OnPlanned(plan);
    int64_t at = now;
    std::vector<StageStamp> stamps;
    for (uint32_t i = 0; i < stages; ++i) {
      const int64_t received = at + static_cast<int64_t>(random() % 3000);
      const int64_t started = std::max(received, free[i]) + static_cast<int64_t>(random() % 100);
      const int64_t ended = started + static_cast<int64_t>(random() % 9000);
      free[i] = ended + static_cast<int64_t>(random() % 200);
      if (id == 1) first[i] = started + offsets[i];
      at = free[i];
      const int64_t o = offsets[i];
      stamps.push_back({received + o, started + o, ended + o, free[i] + o, (ended - started) / 2});
    }
    now = at + static_cast<int64_t>(random() % 3000);
    ASSERT_NE(meter.OnReturned(MicrobatchId(id), stamps, kStart + absl::Nanoseconds(now)), nullptr);
    for (uint32_t i = 0; i < stages; ++i) {
      const absl::Duration line = absl::Nanoseconds(stamps[i].ended_ns - first[i]);
      ASSERT_EQ(meter.Total(i).busy + meter.Total(i).idle.Total(), line) << "stage " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, BubbleMeterPropertyTest, ::testing::Range<uint64_t>(0, 50));

}  // namespace
}  // namespace millrace
