// The compute loop of a stage: join, run the layers, sample on the last stage, hand on.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/microbatch_joiner.h"
#include "worker/stage/stage_compute.h"
#include "worker/stage/stage_io.h"

namespace millrace {

struct StageRunnerOptions {
  Epoch epoch;
  bool first = false;
  bool last = false;
  uint32_t hidden_size = 0;
  uint32_t max_in_flight = 0;
  StageLimits limits;
};

// Thread: compute, but for microbatches_done(). One runner serves one epoch.
class StageRunner {
 public:
  // Takes an output; an error ends the run.
  using Emit = std::function<absl::Status(StageOutput)>;

  // `stage`, `cache`, `inbox` outlive this.
  StageRunner(const StageRunnerOptions& options, StageCompute* stage, KvCache* cache, StageInbox* inbox,
              Emit emit);

  // Runs until the inbox is closed (OK), or until an input or an output is at fault (what and which
  // microbatch).
  absl::Status Run();

  // Thread: any.
  uint64_t microbatches_done() const { return done_.load(std::memory_order_relaxed); }

 private:
  absl::Status RunOne(JoinedMicrobatch joined);
  absl::Status CheckActivations(const HopMessage& message) const;

  const StageRunnerOptions options_;
  StageCompute* const stage_;
  KvCache* const cache_;
  StageInbox* const inbox_;
  const Emit emit_;
  MicrobatchJoiner joiner_;
  std::atomic<uint64_t> done_{0};
};

}  // namespace millrace
