// What the scheduler takes in and gives out, as plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/generation.h"
#include "common/ids.h"

namespace millrace {

// A request of priority q is ordered as if it had arrived q times kPriorityUnit later (earlier if q is below
// 0).
inline constexpr int32_t kMaxPriority = 100;  // either way
constexpr absl::Duration kPriorityUnit = absl::Seconds(1);

// One request, tokenized and validated.
struct SequenceRequest {
  SequenceId id;
  std::vector<TokenId> prompt;  // at least 1
  SamplingOptions sampling;
  std::optional<uint32_t> prompt_logprobs;  // number of alternatives
  uint32_t max_tokens = 1;  // at least 1; the scheduler caps it by the context and by the KV room
  uint32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<TokenId> stop_token_ids;
  absl::Time deadline = absl::InfiniteFuture();
  int32_t priority = 0;    // within kMaxPriority of 0; the lower, the sooner
  std::string cache_salt;  // KV blocks are shared with sequences of the same salt
};

// Consecutive positions of one sequence in a microbatch.
struct PlanSegment {
  SequenceId sequence;
  uint32_t first_position = 0;
  std::vector<TokenId> token_ids;           // at least 1
  std::vector<BlockId> block_ids;           // of positions 0 .. first_position + token_ids.size() - 1
  std::optional<SamplingOptions> sampling;  // set: sample the token after the last position
  std::vector<TokenId> suppressed_ids;      // not to be sampled now (end and stop tokens before min_tokens)
  std::vector<TokenId> history;             // all tokens so far, if sampling->needs_history()
  uint32_t history_prompt_tokens = 0;       // the first so many of history are prompt
  std::optional<uint32_t>
      prompt_logprobs;                    // report the token after each position, with this many alternatives
  std::optional<TokenId> next_prompt_id;  // the prompt token after the last position, if there is one
};

struct MicrobatchPlan {
  MicrobatchId id;
  std::vector<PlanSegment> segments;
  uint32_t rows() const {
    size_t rows = 0;
    for (const PlanSegment& segment : segments) rows += segment.token_ids.size();
    return static_cast<uint32_t>(rows);
  }
};

// What a stage stamped on a microbatch, in seconds of its own clock; from a worker, so it may be anything.
struct StageTimes {
  double resident = 0;  // from when plan and activations were both there until the output was handed on
  double busy = 0;      // computing
};

enum class FinishReason { kEndOfSequence, kStopSequence, kStopToken, kLength };

struct SequenceTimings {
  absl::Duration queue;    // arrival to first microbatch
  absl::Duration prefill;  // to first token
  absl::Duration decode;   // to last token
};

// Actions. For one sequence they come in the order: PromptLogprobsReady*, TokenReady*, SequenceFinished.
struct PromptLogprobsReady {
  SequenceId sequence;
  uint32_t first_position = 0;
  std::vector<TokenLogprobs> positions;
};
struct TokenReady {
  SequenceId sequence;
  TokenId token = 0;
  std::optional<TokenLogprobs> logprobs;
};
struct SequenceFinished {
  SequenceId sequence;
  absl::Status status;                          // OK, or why it ended early
  FinishReason reason = FinishReason::kLength;  // if OK
  std::optional<TokenId> matched_token;         // for kEndOfSequence and kStopToken
  uint32_t prompt_tokens = 0;
  uint32_t output_tokens = 0;
  uint32_t cached_prompt_tokens = 0;  // of the prompt, those found in the KV cache when it was first admitted
  SequenceTimings timings;
  std::vector<std::string> numeric_classes = {};  // of the stages, in order; the engine's to say
};
using SchedulerAction = std::variant<PromptLogprobsReady, TokenReady, SequenceFinished>;

}  // namespace millrace
