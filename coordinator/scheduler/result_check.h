// Whether what a worker sent back is what its plan asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/generation.h"
#include "coordinator/scheduler/microbatch_plan.h"

namespace millrace {

// What one segment of a plan must bring.
struct ExpectedResult {
  SequenceId sequence;
  uint32_t position = 0;  // of the sampled token
  bool token = false;
  std::optional<uint32_t> logprobs;     // alternatives
  std::vector<TokenId> suppressed_ids;  // that cannot have been sampled
  uint32_t first_prompt_position = 0;
  std::vector<TokenId> prompt_ids;  // whose log probabilities are due
  uint32_t prompt_alternatives = 0;
};

// One for each segment that asks for a token or for prompt log probabilities, in order.
std::vector<ExpectedResult> ExpectedResults(const MicrobatchPlan& plan);

// INTERNAL: what differs. Checks sequences, positions, counts and ids, not that numbers are finite.
absl::Status CheckResults(MicrobatchId id, absl::Span<const ExpectedResult> expected,
                          absl::Span<const SequenceResult> results);

}  // namespace millrace
