#include "tests/unit/scheduler/toy_model.h"

#include <algorithm>

namespace millrace::testing {
namespace {

uint64_t Mix(uint64_t state, uint64_t value) {
  state = (state ^ value) * 0x9E3779B97F4A7C15ull;
  return state ^ (state >> 29);
}

uint64_t HashTokens(absl::Span<const TokenId> tokens) {
  uint64_t hash = 0x1234567;
  for (TokenId token : tokens) hash = Mix(hash, token + 1);
  return hash;
}

bool Contains(absl::Span<const TokenId> ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

TokenId ToyNextToken(absl::Span<const TokenId> tokens, const SamplingOptions& sampling,
                     absl::Span<const TokenId> suppressed, uint32_t history_prompt_tokens) {
  uint64_t hash = Mix(HashTokens(tokens), sampling.seed);
  if (sampling.needs_history()) hash = Mix(hash, history_prompt_tokens);
  for (;; hash = Mix(hash, 77)) {
    const TokenId token = static_cast<TokenId>(Mix(hash, tokens.size()) % kToyVocabulary);
    if (!Contains(suppressed, token)) return token;
  }
}

TokenLogprobs ToyLogprobs(absl::Span<const TokenId> tokens, TokenId token, uint32_t alternatives) {
  const uint64_t hash = HashTokens(tokens);
  TokenLogprobs logprobs;
  logprobs.token = token;
  logprobs.logprob = -static_cast<float>(Mix(hash, token) % 1000) / 100.0f;
  for (uint32_t i = 0; i < alternatives; ++i) logprobs.top.emplace_back(i, -static_cast<float>(i));
  return logprobs;
}

std::vector<TokenId> ToySuppressed(const SequenceRequest& request, uint32_t generated,
                                   absl::Span<const TokenId> end_tokens) {
  if (generated >= request.min_tokens) return {};
  std::vector<TokenId> suppressed = request.stop_token_ids;
  if (!request.ignore_eos) suppressed.insert(suppressed.end(), end_tokens.begin(), end_tokens.end());
  std::sort(suppressed.begin(), suppressed.end());
  return suppressed;
}

ToyOutcome ToyGenerate(const SequenceRequest& request, uint32_t max_tokens,
                       absl::Span<const TokenId> end_tokens) {
  ToyOutcome outcome;
  std::vector<TokenId> tokens = request.prompt;
  while (true) {
    const uint32_t generated = static_cast<uint32_t>(outcome.tokens.size());
    const TokenId token =
        ToyNextToken(tokens, request.sampling, ToySuppressed(request, generated, end_tokens),
                     static_cast<uint32_t>(request.prompt.size()));
    tokens.push_back(token);
    outcome.tokens.push_back(token);
    if (!request.ignore_eos && Contains(end_tokens, token)) {
      outcome.reason = FinishReason::kEndOfSequence;
      outcome.matched_token = token;
      return outcome;
    }
    if (Contains(request.stop_token_ids, token)) {
      outcome.reason = FinishReason::kStopToken;
      outcome.matched_token = token;
      return outcome;
    }
    if (outcome.tokens.size() >= max_tokens) return outcome;
  }
}

}  // namespace millrace::testing
