// From what workers measured, or from published figures of a device, to what a stage costs.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/worker_profile.h"
#include "coordinator/planner/model_shape.h"
#include "coordinator/planner/placement.h"
#include "coordinator/scheduler/stage_cost.h"

namespace millrace {

// INVALID_ARGUMENT: a profile that cannot have been measured (not finite, negative, above an hour, no points
// or more than kMaxProfilePoints of a kind, rows that are not a multiple of the sequences). To be called on
// every profile from outside before anything else is done with it.
inline constexpr size_t kMaxProfilePoints = 64;
absl::Status CheckProfile(const WorkerProfile& profile);

// What a stage of these layers costs on a worker with this profile. A layer costs as the measured one does,
// scaled by its matrix elements; attention, by the slope between two contexts of the same rows, counts once
// for each layer. REQUIRES: CheckProfile was OK; the layers exist.
StageCost MakeStageCost(const WorkerProfile& profile, const ModelShape& shape, const LayerRange& layers);

// A device by two figures: each operation takes the longer of its arithmetic and its memory traffic (the
// roofline of Williams et al., doi 10.1145/1498765.1498785).
struct DeviceSpeed {
  double flops_per_second = 0;
  double bytes_per_second = 0;
  double overhead_seconds = 0;  // of a microbatch
};
// The profile that such a device would show for the model. REQUIRES: both figures are positive.
WorkerProfile EstimateProfile(const DeviceSpeed& device, const ModelShape& shape);

// The microbatch that placements are compared by: 16 decodes that attend to 256 positions each.
BatchFeatures ReferenceBatch();

// What requests usually are, for a placement that suits them.
struct Workload {
  uint32_t prompt_tokens = 0;  // that are computed; 0: decodes only
  uint32_t output_tokens = 1;  // at least 1
};

// As many decodes as ReferenceBatch(), at the usual context, and the prefill rows that come with them.
// Without a prompt: ReferenceBatch().
BatchFeatures ReferenceBatch(const Workload& workload);

}  // namespace millrace
