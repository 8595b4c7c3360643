// What a step costs: it must not show beside a microbatch of milliseconds.
#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "common/process.h"
#include "coordinator/scheduler/scheduler.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/scheduler_harness.h"

namespace millrace::testing {
namespace {

// Median time of a step (a result, its actions, the next plans) with `running` sequences that decode and
// `waiting` that wait.
absl::Duration MedianStep(uint32_t running, uint32_t waiting) {
  SchedulerOptions options;
  options.context_tokens = 100000;
  options.max_running_sequences = running;
  options.max_waiting_sequences = running + waiting;
  Scheduler scheduler(options);
  scheduler.OnRingReady({4, 4, 1000000, 16}, At(0));
  for (uint64_t id = 1; id <= running + waiting; ++id) scheduler.Add(MakeRequest(id, 64, 100000), At(0));
  std::deque<MicrobatchPlan> in_flight;
  const auto step = [&] {
    for (MicrobatchPlan& plan : PlanAll(scheduler)) in_flight.push_back(std::move(plan));
    auto results = Answer(in_flight.front());
    const int64_t start = ThreadCpuNanos();
    EXPECT_TRUE(scheduler.OnResult(in_flight.front().id, std::move(results), At(0)).ok());
    in_flight.pop_front();
    scheduler.TakeActions();
    for (MicrobatchPlan& plan : PlanAll(scheduler)) in_flight.push_back(std::move(plan));
    return absl::Nanoseconds(ThreadCpuNanos() - start);
  };
  for (uint32_t i = 0; i < 2 * running + 20; ++i) step();
  EXPECT_EQ(scheduler.load().running, running);
  EXPECT_EQ(scheduler.load().waiting, waiting);
  std::vector<absl::Duration> times;
  for (int i = 0; i < 301; ++i) times.push_back(step());
  std::nth_element(times.begin(), times.begin() + 150, times.end());
  return times[150];
}

// Of CPU time, so that a loaded machine does not show; the bounds leave room for sanitizers. What they catch
// is a cost that grows with the square.
TEST(SchedulerCostTest, StepsInTheTimeOfItsSequences) {
  const absl::Duration usual = MedianStep(256, 2000);
  RecordProperty("microseconds", absl::FormatDuration(usual));
  EXPECT_LT(usual, absl::Milliseconds(2));
}

TEST(SchedulerCostTest, StepsNoSlowerForAHundredTimesAsManyWaiting) {
  const absl::Duration few = MedianStep(64, 1000);
  const absl::Duration many = MedianStep(64, 100000);
  EXPECT_LT(many, 4 * few + absl::Microseconds(100));
}

}  // namespace
}  // namespace millrace::testing
