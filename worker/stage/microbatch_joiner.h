// Joins the plan and the activations of each microbatch, which come by different ways and in either order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

#include "absl/status/status.h"
#include "worker/stage/stage_io.h"

namespace millrace {

struct JoinedMicrobatch {
  StageBatch batch;
  std::optional<HopMessage> activations;  // absent on the first stage
  int64_t received_ns = 0;                // when the later of the two came
};

// Thread: compute. Microbatches come out in the order of their ids: 1, 2, 3, ... Nothing is kept of other
// epochs.
class MicrobatchJoiner {
 public:
  struct Options {
    Epoch epoch;
    bool first_stage = false;
    size_t max_in_flight = 0;
  };
  explicit MicrobatchJoiner(const Options& options) : options_(options) {}

  // INVALID_ARGUMENT: an id that came before, activations for the first stage, or activations whose rows
  // differ from the plan's. RESOURCE_EXHAUSTED: more microbatches than may be in flight. Stale epochs are
  // dropped with OK.
  absl::Status Add(StageInput input);

  // The next microbatch, if both halves are there.
  std::optional<JoinedMicrobatch> Next();

 private:
  struct Halves {
    std::optional<StageBatch> batch;
    std::optional<HopMessage> activations;
    int64_t received_ns = 0;
  };
  absl::Status Store(Halves& halves, StageInput input);

  const Options options_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Halves> waiting_;
};

}  // namespace millrace
