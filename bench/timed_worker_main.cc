// timed_worker: a worker whose stage waits a given time for each microbatch instead of computing. Everything
// else is the real worker, so that rings of many stages, each as fast as on a machine of its own, can be
// measured on few cores. Its activations and tokens mean nothing.
#include <sys/prctl.h>
#include <time.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/log.h"
#include "common/options.h"
#include "worker/control/worker.h"
#include "worker/stage/stage_compute.h"

namespace millrace::bench {
namespace {

struct StageTime {
  absl::Duration fixed = absl::Milliseconds(8);
  absl::Duration per_row = absl::Microseconds(250);
};

// Sleeps until `wait` after now, to the microsecond: the kernel may otherwise round by 50 us, and a relative
// sleep would add what passed since.
void WaitPrecisely(absl::Duration wait) {
  timespec until{};
  clock_gettime(CLOCK_MONOTONIC, &until);
  until = absl::ToTimespec(absl::DurationFromTimespec(until) + wait);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
  }
}

TokenLogprobs LogprobOf(TokenId token) {
  TokenLogprobs logprobs;
  logprobs.token = token;
  return logprobs;
}

// Thread: compute.
class TimedStage : public StageCompute {
 public:
  TimedStage(const StageTime& time, uint32_t hidden_size, uint32_t vocabulary_size)
      : time_(time), hidden_size_(hidden_size), vocabulary_size_(vocabulary_size) {}

  absl::StatusOr<std::shared_ptr<PooledBuffer>> Run(const StageBatch& batch,
                                                    std::shared_ptr<PooledBuffer> input, KvCache&) override {
    if (!precise_) {
      precise_ = true;
      prctl(PR_SET_TIMERSLACK, 1UL);  // of this thread
    }
    WaitPrecisely(time_.fixed + batch.rows() * time_.per_row);
    if (input != nullptr) return input;
    std::shared_ptr<PooledBuffer> buffer = pool_.Get(size_t{batch.rows()} * hidden_size_ * sizeof(float));
    std::memset(buffer->data, 0, buffer->size);
    return buffer;
  }

  absl::StatusOr<std::vector<SequenceResult>> Sample(const StageBatch& batch, const PooledBuffer&) override {
    std::vector<SequenceResult> results;
    for (const StageSegment& segment : batch.segments) {
      if (!segment.sampling && !segment.prompt_logprobs) continue;
      results.push_back(SampleOne(segment));
    }
    return results;
  }

  uint64_t weight_bytes() const override { return 0; }
  uint64_t activation_bytes() const override { return 0; }

 private:
  // A token that depends on the position only, and is no control token.
  TokenId AnyToken(uint32_t position) const { return (position * 7919 + 1000) % vocabulary_size_; }

  SequenceResult SampleOne(const StageSegment& segment) const {
    SequenceResult result;
    result.sequence = segment.sequence;
    result.position = segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
    if (segment.sampling) {
      result.token = AnyToken(result.position);
      if (segment.sampling->logprobs) result.logprobs = LogprobOf(*result.token);
    }
    if (!segment.prompt_logprobs) return result;
    result.first_prompt_position = segment.first_position + 1;
    for (size_t i = 1; i < segment.token_ids.size(); ++i) {
      result.prompt_logprobs.push_back(LogprobOf(segment.token_ids[i]));
    }
    if (segment.next_prompt_id) result.prompt_logprobs.push_back(LogprobOf(*segment.next_prompt_id));
    return result;
  }

  const StageTime time_;
  const uint32_t hidden_size_;
  const uint32_t vocabulary_size_;
  BufferPool pool_{8};
  bool precise_ = false;
};

int Main(int argc, char** argv) {
  SetLogName("timed worker");
  StageTime time;
  WorkerFlags flags;
  OptionSet set("timed_worker", "--coordinator HOST:PORT [options]",
                "Joins a coordinator as millrace-worker does, and waits instead of computing.");
  flags.DeclareJoin(set);
  flags.DeclareLocal(set);
  set.AddDuration("fixed", &time.fixed, "time of each microbatch");
  set.AddDuration("per-row", &time.per_row, "and for each of its rows");
  const auto outcome = set.Parse(std::vector<std::string>(argv + 1, argv + argc), nullptr);
  if (outcome.ok() && *outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  auto options = outcome.ok() ? flags.Finish() : outcome.status();
  if (!options.ok()) {
    std::fprintf(stderr, "timed_worker: %s\n", std::string(options.status().message()).c_str());
    return kExitUsage;
  }
  options->make_stage = [time](const GgufFile&, const HyperParameters& shape, DeviceGroup&,
                               const StageModelOptions&) {
    return std::make_unique<TimedStage>(time, shape.hidden_size, shape.vocabulary_size);
  };
  const absl::Status status = RunWorker(*options);
  if (status.ok()) return kExitOk;
  LogError(status.message());
  return kExitFailure;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  return millrace::bench::Main(argc, argv);
}
