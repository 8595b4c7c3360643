// The real scheduler on a ring that exists only as numbers: stages that take as long as StageCost says, hops
// that take as long as they are said to, under a virtual clock. What the plan predicts is what this measures.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/pipeline/bubble_meter.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/stage_cost.h"

namespace millrace {

struct SimulatedRequest {
  absl::Duration arrival;  // after the start
  uint32_t prompt_tokens = 1;
  uint32_t output_tokens = 1;
};

struct SimulatedHop {
  double seconds = 0;
  double row_seconds = 0;  // in addition, each row of the microbatch
};

struct RingSimulation {
  SchedulerOptions scheduler;
  RingShape shape;                 // with the stage costs
  std::vector<SimulatedHop> hops;  // by stage: from it to the next, the last one's back to the coordinator
  double plan_seconds = 0;         // from a decision until stage 0 has the plan
  std::vector<SimulatedRequest> requests;
  // Only what lies between counts: from the end of the warm-up (in requests that got their first token) to
  // the end of the last request (or of the first), or until so many tokens were generated, or so much is
  // over.
  size_t warm_up_first_tokens = 0;
  bool until_first_end = false;
  uint64_t max_window_tokens = UINT64_MAX;
  absl::Duration limit = absl::Hours(24);
  uint64_t max_microbatches = 20000;
};

struct SimulationResult {
  absl::Duration window;         // virtual time that counted
  uint64_t prompt_tokens = 0;    // prefilled in it
  uint64_t output_tokens = 0;    // generated in it
  uint64_t microbatches = 0;     // that came back in it
  double mean_in_flight = 0;     // microbatches, over the window
  absl::Duration first_token;    // median over requests that arrived, from arrival; of the whole run
  absl::Duration inter_token;    // median gap between tokens of a sequence, in the window
  std::vector<StageUse> stages;  // of the window, by the bubble meter
  double bubble = 0;             // of all stages together
  bool complete = false;         // every request ended
};

// REQUIRES: costs and hops for each stage; requests that fit in the context and the KV cache. Deterministic.
SimulationResult SimulateRing(const RingSimulation& simulation);

}  // namespace millrace
