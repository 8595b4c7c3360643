// Which worker holds which layers, by the time that each would take and the memory that each has: pure.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/worker_profile.h"
#include "coordinator/planner/model_shape.h"
#include "coordinator/planner/placement.h"
#include "coordinator/planner/stage_costs.h"

namespace millrace {

// What placing needs to know of a worker.
struct PlacedWorker {
  std::optional<WorkerProfile> profile;  // checked; absent: as fast as the mean of those that have one
  uint64_t memory_bytes = 0;             // for weights, KV cache and activations; 0: not known, no limit
  uint64_t kv_memory_bytes = 0;          // of which at most so much for KV cache; 0: no limit of its own
  std::optional<uint32_t> stage;         // it holds this one, and no other
};

struct PlacementInput {
  const ModelShape* shape = nullptr;
  std::vector<PlacedWorker> workers;  // one for each stage
  uint32_t max_rows = 0;
  uint32_t context_tokens = 0;
  Workload workload;  // the stages are to be equal for
  // The user's choice: these ranges, whatever they cost. Empty: chosen here.
  std::vector<LayerRange> fixed;
  // What ran before: kept while it fits in memory and no other is more than 10 % faster, so that those who
  // stay keep their weights. previous_worker[s] is the worker of stage s then, or absent if it left. Empty:
  // nothing.
  std::vector<LayerRange> previous;
  std::vector<std::optional<size_t>> previous_worker;
};

struct StagePlacement {
  std::vector<LayerRange> ranges;  // by stage
  std::vector<size_t> workers;     // by stage: which of the input's
  bool measured = false;           // false: no worker had a profile, and the seconds are 0
  std::vector<double> seconds;     // by stage, of ReferenceBatch(workload)
  double max_over_mean = 1;        // of the stages' times
  double bound = 1;                // the same of the best cut: what whole layers on these workers allow
};

// Contiguous layers such that the slowest stage is as fast as can be: exact, by dynamic programming, over all
// ways to cut; and over all ways to give the stages to workers that are not pinned, as long as these are few
// (about 2^workers x workers x layers^2 within kMaxPlacementSteps; beyond, workers keep the order they have).
// Layers cost what MakeStageCost says of ReferenceBatch(workload), or their matrix elements if nothing was
// measured.
//
// Workers whose measured times differ by less than 5 % count as equal, and the cut by matrix elements is
// taken if it is within 2 % of the best, so that noise does not move layers from one start to the next.
//
// INVALID_ARGUMENT: no workers, more than layers, or two pinned to one stage. RESOURCE_EXHAUSTED: some stage
// cannot hold its weights, activations and one context of KV cache (or kv_memory_bytes of it, if that is
// less); the message names the stage, what it needs and what its worker has.
inline constexpr double kMaxPlacementSteps = 2e7;
absl::StatusOr<StagePlacement> PlaceStages(const PlacementInput& input);

}  // namespace millrace
