// What a stage is told about one microbatch, as plain values (checked when they came off the wire).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/generation.h"
#include "common/ids.h"

namespace millrace {

// Consecutive positions of one sequence.
struct StageSegment {
  SequenceId sequence;
  uint32_t first_position = 0;
  std::vector<TokenId> token_ids;  // at least 1, each below the vocabulary size
  std::vector<BlockId> block_ids;  // at least enough for all positions; each below the number of blocks
  std::optional<SamplingOptions> sampling;  // set: sample the token after the last position
  std::vector<TokenId> suppressed_ids;
  std::vector<TokenId> history;  // empty unless sampling->needs_history()
  uint32_t history_prompt_tokens = 0;
  std::optional<uint32_t> prompt_logprobs;
  std::optional<TokenId> next_prompt_id;
};

struct StageBatch {
  Epoch epoch;
  MicrobatchId id;
  std::vector<StageSegment> segments;  // at least 1
  uint32_t rows() const {
    size_t rows = 0;
    for (const StageSegment& segment : segments) rows += segment.token_ids.size();
    return static_cast<uint32_t>(rows);
  }
};

// The size agreed on for an epoch; a batch that exceeds it is refused before anything is computed.
struct StageLimits {
  uint32_t max_rows = 0;
  uint32_t num_blocks = 0;
  uint32_t block_tokens = 0;
  uint32_t vocabulary_size = 0;
  uint32_t context_tokens = 0;
};

}  // namespace millrace
