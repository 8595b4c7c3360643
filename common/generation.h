// The plain values that coordinator and worker share about one sequence: how to sample, and what was sampled.
// No behaviour, no protobuf.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "common/ids.h"

namespace millrace {

inline constexpr int kMaxLogprobs = 32;

// How one token is chosen from logits. The choice is a pure function of (logits, history, options, position).
// Order of application: logit_bias, suppressed ids, repetition, presence and frequency penalties; then,
// unless temperature is 0 (argmax, the lowest id wins a tie): temperature, top_k, top_p, min_p, and a draw
// from the counter RNG keyed by (seed, position).
struct SamplingOptions {
  float temperature = 1.0f;         // >= 0; 0 is greedy
  uint32_t top_k = 0;               // 0: off
  float top_p = 1.0f;               // (0, 1]; 1: off
  float min_p = 0.0f;               // [0, 1]; 0: off
  float repetition_penalty = 1.0f;  // > 0; 1: off; over prompt and output
  float presence_penalty = 0.0f;    // [-2, 2]; over output
  float frequency_penalty = 0.0f;   // [-2, 2]; over output
  uint64_t seed = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;  // each id at most once
  std::optional<uint32_t> logprobs;                   // number of alternatives, 0..kMaxLogprobs; absent: none

  bool needs_history() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
  }
};

// Natural-log probabilities at one position, of the raw logits (before bias, penalties and temperature).
struct TokenLogprobs {
  TokenId token = 0;                           // the token that stands at this position
  float logprob = 0.0f;                        // its log probability
  std::vector<std::pair<TokenId, float>> top;  // the most probable, best first; ties by lower id
};

// What one microbatch brought for one sequence.
struct SequenceResult {
  SequenceId sequence;
  uint32_t position = 0;         // of `token`: the number of tokens before it
  std::optional<TokenId> token;  // absent for a prefill chunk that is not the last
  std::optional<TokenLogprobs> logprobs;
  uint32_t first_prompt_position = 0;          // position of prompt_logprobs[0]
  std::vector<TokenLogprobs> prompt_logprobs;  // of consecutive prompt tokens; never of position 0
};

}  // namespace millrace
