// A language model of a few lines, for tests that care who computes a token when, not what it says.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "common/generation.h"
#include "coordinator/scheduler/microbatch_plan.h"

namespace millrace::testing {

inline constexpr TokenId kToyVocabulary = 60;

// The next token is a hash of all tokens before it, of the options, and of where the prompt ends if penalties
// need it.
TokenId ToyNextToken(absl::Span<const TokenId> tokens, const SamplingOptions& sampling,
                     absl::Span<const TokenId> suppressed, uint32_t history_prompt_tokens);

// Likewise for the log probability of `token` after `tokens`.
TokenLogprobs ToyLogprobs(absl::Span<const TokenId> tokens, TokenId token, uint32_t alternatives);

struct ToyOutcome {
  std::vector<TokenId> tokens;  // generated
  FinishReason reason = FinishReason::kLength;
  std::optional<TokenId> matched_token;
};

// What a request must give, computed one token at a time. `max_tokens`: as the scheduler caps it.
ToyOutcome ToyGenerate(const SequenceRequest& request, uint32_t max_tokens,
                       absl::Span<const TokenId> end_tokens);

// The ids that must not be the next token of a request that has generated so many.
std::vector<TokenId> ToySuppressed(const SequenceRequest& request, uint32_t generated,
                                   absl::Span<const TokenId> end_tokens);

}  // namespace millrace::testing
