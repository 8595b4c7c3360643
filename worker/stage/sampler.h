// Chooses a token from logits: a pure function of (logits, history, options, position).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/generation.h"
#include "common/ids.h"

namespace millrace {

struct SampleInput {
  absl::Span<const float> logits;             // [vocabulary], raw
  const SamplingOptions* options = nullptr;   // see SamplingOptions for the order of application
  absl::Span<const TokenId> history;          // for penalties
  uint32_t history_prompt_tokens = 0;
  absl::Span<const TokenId> suppressed_ids;
  uint32_t position = 0;                      // of the token to choose
};

// Thread: compute. Holds scratch of the size of the vocabulary.
class Sampler {
 public:
  explicit Sampler(uint32_t vocabulary_size);
  TokenId Sample(const SampleInput& input);

 private:
  std::vector<float> adjusted_;     // [vocabulary]
  std::vector<TokenId> candidates_;
};

// Log probability of `token` and of the `alternatives` most probable ones, from raw logits.
TokenLogprobs ComputeLogprobs(absl::Span<const float> logits, TokenId token, uint32_t alternatives);

// Uniform in [0, 1), a pure function of (seed, position): Philox4x32-10, Salmon et al., SC'11.
double CounterRandom(uint64_t seed, uint64_t position);

}  // namespace millrace
