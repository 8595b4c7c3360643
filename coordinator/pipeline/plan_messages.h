// Between the scheduler's plain values and wire messages.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "common/generation.h"
#include "common/hop_message.h"
#include "coordinator/scheduler/microbatch_plan.h"
#include "millrace/v1/cluster.pb.h"

namespace millrace {

v1::Plan ToWirePlan(Epoch epoch, const MicrobatchPlan& plan);

// INTERNAL: not a result, or log probabilities that are NaN, infinite (minus infinity may be) or more than
// kMaxLogprobs.
absl::StatusOr<std::vector<SequenceResult>> ParseResult(const HopMessage& message);

// The largest result payload that a microbatch of `max_rows` rows can give.
size_t MaxResultBytes(uint32_t max_rows);

}  // namespace millrace
