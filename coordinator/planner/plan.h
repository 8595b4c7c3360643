// What a cluster would do with a model, before anything is loaded: `millrace plan`. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/worker_profile.h"
#include "coordinator/planner/model_shape.h"
#include "coordinator/planner/placement.h"
#include "coordinator/planner/ring_simulator.h"
#include "coordinator/planner/stage_costs.h"

namespace millrace {

// A worker, measured or estimated; one of the two is set.
struct PlannedWorker {
  std::string name;
  std::optional<WorkerProfile> profile;  // checked
  std::optional<DeviceSpeed> speed;
  uint64_t memory_bytes = 0;     // 0: not known, no limit
  uint64_t kv_memory_bytes = 0;  // of which at most so much for KV cache; 0: no limit of its own
};

struct PlannedCluster {
  std::vector<PlannedWorker> workers;
  double link_seconds = 100e-6;          // of a hop, whatever it carries
  double link_bytes_per_second = 1.0e9;  // of what it carries
};

struct PlanRequest {
  ModelShape shape;
  PlannedCluster cluster;
  uint32_t context_tokens = 0;  // prompt and answer; at most the shape's
  uint32_t batch = 16;          // sequences at once
  uint32_t prompt_tokens = 128;
  uint32_t output_tokens = 64;  // of each sequence, over which steady decoding is watched; at least 1
  uint32_t max_rows = 128;      // of a microbatch
  uint32_t max_in_flight = 0;   // 0: 4 x stages + 4
  uint32_t block_tokens = 16;
  std::vector<LayerRange> fixed;  // the placement of a cluster that runs: only this one is looked at
};

struct PlanStage {
  LayerRange layers;
  std::string worker;
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes = 0;  // of the batch, all at full context
  uint64_t activation_bytes = 0;
  uint64_t memory_bytes = 0;  // of the worker; 0: not known
  double seconds = 0;         // of ReferenceBatch()
};

struct PlanChoice {
  uint32_t stages = 1;
  uint32_t tensor_parallel = 1;  // above 1: by formula only, the programs run 1
  bool fits = false;
  std::string why_not;  // if it does not
  std::vector<PlanStage> placement;
  double max_over_mean = 1;
  double bound = 1;
  uint64_t max_sequences = 0;            // at full context, by memory; 0: no limit is known
  uint64_t max_context = 0;              // of one sequence, by memory and model
  uint64_t running = 0;                  // of the batch, how many the KV cache holds at full context
  double prefill_tokens_per_second = 0;  // the batch's prompts, arriving at once
  double decode_tokens_per_second = 0;   // steady, the batch generating
  double first_token_seconds = 0;        // one request in an idle cluster
  double inter_token_seconds = 0;        // steady, median
  SimulationResult decode;               // bubble by cause and stage
};

struct Plan {
  double parameters = 0;
  uint64_t weight_bytes = 0;  // of the whole model, tied matrices once
  uint64_t kv_bytes_per_token = 0;
  std::vector<PlanChoice> choices;  // the most decode throughput first; those that do not fit last
};

// Tries stages x tensor parallel for the workers there are (at most kMaxPlanWorkers). Times come from the
// real scheduler in SimulateRing. INVALID_ARGUMENT: no workers or too many, no batch, a context beyond the
// model's. RESOURCE_EXHAUSTED: no choice fits; the message says by how much the nearest one misses, and what
// would do.
inline constexpr size_t kMaxPlanWorkers = 64;
absl::StatusOr<Plan> MakePlan(const PlanRequest& request);

}  // namespace millrace
