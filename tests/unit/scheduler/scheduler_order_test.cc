// Whose turn it is: priorities, and that nobody waits for ever.
#include <vector>

#include "coordinator/scheduler/scheduler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/scheduler_harness.h"

namespace millrace::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

SequenceRequest Prioritised(uint64_t id, int32_t priority, uint32_t prompt = 4, uint32_t max_tokens = 1) {
  SequenceRequest request = MakeRequest(id, prompt, max_tokens);
  request.priority = priority;
  return request;
}

SchedulerOptions OneAtATime() {
  SchedulerOptions options = SmallOptions();
  options.max_running_sequences = 1;
  return options;
}

// The order in which what waits ends.
std::vector<uint64_t> OrderOfEnds(Scheduler& scheduler, absl::Time now) {
  RunToEnd(scheduler, now);
  std::vector<uint64_t> order;
  for (const SequenceFinished& finished : Take(scheduler).finished)
    order.push_back(finished.sequence.value());
  return order;
}

TEST(SchedulerOrderTest, TakesTheLowerPriorityFirstAndEqualOnesAsTheyCame) {
  Scheduler s(OneAtATime());
  s.OnRingReady(Shape(1), At(0));
  const int32_t priorities[] = {0, 3, -2, 0, -2, 100, -100};
  for (uint64_t i = 0; i < 7; ++i) s.Add(Prioritised(i + 1, priorities[i]), At(0));
  EXPECT_THAT(OrderOfEnds(s, At(0)), ElementsAre(7, 3, 5, 1, 4, 2, 6));
}

TEST(SchedulerOrderTest, CountsALevelAsASecondOfWaiting) {
  Scheduler s(OneAtATime());
  s.OnRingReady(Shape(1), At(0));
  s.Add(Prioritised(1, 2), At(0));
  s.Add(Prioritised(2, 0), At(1999));
  s.Add(Prioritised(3, 0), At(2001));
  s.Add(Prioritised(4, -1), At(3002));
  s.Add(Prioritised(5, -1), At(3000));
  EXPECT_THAT(OrderOfEnds(s, At(4000)), ElementsAre(2, 1, 5, 3, 4));
}

TEST(SchedulerOrderTest, LetsTheRunningOneGoOnWhenAMoreUrgentOneArrives) {
  Scheduler s(OneAtATime());
  s.OnRingReady(Shape(1), At(0));
  s.Add(Prioritised(1, 100, 4, 5), At(0));
  Land(s, *s.PlanNext(At(0)));
  s.Add(Prioritised(2, -100), At(1));
  EXPECT_THAT(OrderOfEnds(s, At(1)), ElementsAre(1, 2));
  EXPECT_EQ(s.load().preemptions, 0u);
}

TEST(SchedulerOrderTest, PreemptsTheLeastUrgentNotTheLastThatCame) {
  Scheduler s(SmallOptions());
  s.OnRingReady(Shape(1, 5), At(0));
  s.Add(Prioritised(1, 1, 6, 10), At(0));
  Land(s, *s.PlanNext(At(0)));
  s.Add(Prioritised(2, -1, 6, 10), At(1));
  std::vector<uint64_t> longer;  // who was replayed
  for (int i = 0; i < 60 && !s.idle(); ++i) {
    const auto plan = s.PlanNext(At(1));
    ASSERT_TRUE(plan);
    for (const PlanSegment& segment : plan->segments) {
      if (segment.first_position == 0 && segment.token_ids.size() > 6)
        longer.push_back(segment.sequence.value());
    }
    Land(s, *plan, At(1));
  }
  EXPECT_EQ(s.load().preemptions, 1u);
  EXPECT_THAT(longer, ElementsAre(1));
}

// One of priority 100 among urgent ones that never stop coming: its turn comes after 100 s of waiting and
// what then runs.
TEST(SchedulerOrderTest, GivesTheLeastUrgentItsTurnInTheEnd) {
  Scheduler s(OneAtATime());
  s.OnRingReady(Shape(1), At(0));
  s.Add(Prioritised(1, 100), At(0));
  uint64_t next = 2;
  int64_t millis = 0;
  std::vector<SequenceFinished> ends;
  for (; millis < 400000 && ends.empty(); millis += 500) {
    s.Add(Prioritised(next++, -100), At(millis));
    const auto plan = s.PlanNext(At(millis));
    ASSERT_TRUE(plan);
    Land(s, *plan, At(millis));
    for (const SequenceFinished& finished : Take(s).finished) {
      if (finished.sequence == SequenceId(1)) ends.push_back(finished);
    }
  }
  ASSERT_THAT(ends, SizeIs(1));
  EXPECT_GE(millis, 200000) << "urgent ones that came in 200 s go first";
  EXPECT_LE(millis, 201000);
}

TEST(SchedulerOrderDeathTest, RefusesAPriorityOutOfRange) {
  Scheduler s(SmallOptions());
  s.OnRingReady(Shape(1), At(0));
  EXPECT_DEATH(s.Add(Prioritised(1, 101), At(0)), "priority");
  EXPECT_DEATH(s.Add(Prioritised(1, -101), At(0)), "priority");
}

}  // namespace
}  // namespace millrace::testing
