// What scheduling costs: the time of one step (a result applied, its actions taken, the next microbatch
// planned), by how many sequences run and how many wait.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/options.h"
#include "common/process.h"
#include "coordinator/scheduler/ring_timing.h"
#include "coordinator/scheduler/scheduler.h"

namespace millrace {
namespace {

constexpr uint32_t kStages = 4;
constexpr int kSteps = 2001;

std::vector<SequenceResult> Answer(const MicrobatchPlan& plan) {
  std::vector<SequenceResult> results;
  for (const PlanSegment& segment : plan.segments) {
    if (!segment.sampling) continue;
    SequenceResult& result = results.emplace_back();
    result.sequence = segment.sequence;
    result.position = segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
    result.token = 50;
  }
  return results;
}

// A saturated scheduler: `running` sequences decode or prefill, `queued` wait, and one that ends is replaced.
class Saturated {
 public:
  Saturated(uint32_t running, uint32_t queued) : running_(running), queued_(queued), scheduler_(Options()) {
    RingShape shape;
    shape.num_stages = kStages;
    shape.max_in_flight = 4 * kStages + 4;
    shape.num_blocks = 1u << 20;
    scheduler_.OnRingReady(shape, Now());
    while (added_ < running_ + queued_) Add();
    while (scheduler_.load().running < running_) Step();
    for (uint32_t i = 0; i < 2 * running_; ++i) Step();
  }

  // Median and 99th percentile, in microseconds.
  std::pair<double, double> Measure() {
    std::vector<double> times;
    for (int i = 0; i < kSteps; ++i) times.push_back(Step());
    std::sort(times.begin(), times.end());
    return {times[kSteps / 2], times[kSteps * 99 / 100]};
  }

 private:
  SchedulerOptions Options() const {
    SchedulerOptions options;
    options.context_tokens = 1u << 20;
    options.max_running_sequences = running_;
    options.max_waiting_sequences = running_ + queued_;
    return options;
  }
  absl::Time Now() const {
    return absl::UnixEpoch() + absl::Microseconds(6000) * static_cast<int64_t>(steps_);
  }

  void Add() {
    SequenceRequest request;
    request.id = SequenceId(++added_);
    request.prompt.assign(64 + added_ % 64, 100);
    request.max_tokens = 64 + static_cast<uint32_t>(added_ * 7919 % 128);
    scheduler_.Add(std::move(request), Now());
  }

  double Step() {
    Plan();
    const MicrobatchPlan plan = std::move(in_flight_.front());
    in_flight_.pop_front();
    ++steps_;
    const double rows = plan.rows();
    const double busy = 2e-3 + 2e-4 * rows;
    const std::vector<StageTimes> times(kStages, StageTimes{busy + 1e-4, busy});
    std::vector<SequenceResult> results = Answer(plan);
    const absl::Time start = Clock::Steady().Now();
    scheduler_.OnStageTimes(plan.id, times, Now());
    if (!scheduler_.OnResult(plan.id, std::move(results), Now()).ok()) std::abort();
    const std::vector<SchedulerAction> actions = scheduler_.TakeActions();
    Plan();
    const double microseconds = absl::ToDoubleMicroseconds(Clock::Steady().Now() - start);
    for (const SchedulerAction& action : actions) {
      if (std::holds_alternative<SequenceFinished>(action)) Add();
    }
    return microseconds;
  }

  void Plan() {
    while (auto plan = scheduler_.PlanNext(Now())) in_flight_.push_back(*std::move(plan));
  }

  const uint32_t running_;
  const uint32_t queued_;
  Scheduler scheduler_;
  std::deque<MicrobatchPlan> in_flight_;
  uint64_t added_ = 0;
  uint64_t steps_ = 0;
};

struct Row {
  uint32_t running = 0;
  uint32_t queued = 0;
  double median_us = 0;
  double p99_us = 0;
};

bool WriteJson(const std::string& path, const std::vector<Row>& rows) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return false;
  std::fprintf(file, "{\"rows\": [");
  for (size_t i = 0; i < rows.size(); ++i) {
    std::fprintf(file, "%s\n  {\"running\": %u, \"queued\": %u, \"median_us\": %.2f, \"p99_us\": %.2f}",
                 i == 0 ? "" : ",", rows[i].running, rows[i].queued, rows[i].median_us, rows[i].p99_us);
  }
  std::fprintf(file, "\n]}\n");
  return std::fclose(file) == 0;
}

int Main(int argc, char** argv) {
  std::string json;
  OptionSet set(
      "scheduler_bench", "[options]",
      "Measures what a step of the scheduler costs (a result applied, the next microbatch planned) with "
      "four stages, by how many sequences run and how many wait.");
  set.AddString("json", &json, "FILE", "write what was measured to this file, too");
  const auto outcome = set.Parse(std::vector<std::string>(argv + 1, argv + argc), nullptr);
  if (!outcome.ok()) {
    std::fprintf(stderr, "scheduler_bench: %s\n", std::string(outcome.status().message()).c_str());
    return kExitUsage;
  }
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  std::printf("%8s %8s %12s %12s\n", "running", "queued", "median us", "p99 us");
  std::vector<Row> rows;
  for (const uint32_t running : {64u, 128u, 256u}) {
    for (const uint32_t queued : {500u, 1000u, 2000u}) {
      const auto [median, p99] = Saturated(running, queued).Measure();
      std::printf("%8u %8u %12.1f %12.1f\n", running, queued, median, p99);
      rows.push_back({running, queued, median, p99});
    }
  }
  if (!json.empty() && !WriteJson(json, rows)) {
    std::fprintf(stderr, "scheduler_bench: cannot write %s\n", json.c_str());
    return kExitFailure;
  }
  return kExitOk;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  return millrace::Main(argc, argv);
}
