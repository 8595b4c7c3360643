// Chooses a token from logits: a pure function of (logits, history, options, position).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/generation.h"
#include "common/ids.h"

namespace millrace {

struct SampleInput {
  absl::Span<const float> logits;            // [vocabulary], raw
  const SamplingOptions* options = nullptr;  // see SamplingOptions for the order of application
  absl::Span<const TokenId> history;         // for penalties; each below the vocabulary size
  uint32_t history_prompt_tokens = 0;        // the first so many of history are prompt
  absl::Span<const TokenId> suppressed_ids;  // each below the vocabulary size
  uint32_t position = 0;                     // of the token to choose
};

// Thread: compute. Holds scratch of the size of the vocabulary; nothing of one call is seen by the next.
//
// Penalties are those of CTRL (Keskar et al., arXiv 1909.05858: a repeated token's positive logit is divided,
// its negative one multiplied) and of the OpenAI API (presence and frequency are subtracted). top_p: Holtzman
// et al., arXiv 1904.09751; over what top_k left. min_p: Nguyen et al., arXiv 2407.01082.
//
// Every sum is in double and in one order. NaN and -inf are never chosen, +inf counts as the largest float.
// If nothing is left to choose from, the largest raw logit that is finite wins, else token 0.
class Sampler {
 public:
  explicit Sampler(uint32_t vocabulary_size);

  // REQUIRES: input.logits.size() == vocabulary_size, ids and options in range (CheckBatch).
  TokenId Sample(const SampleInput& input);

  uint64_t scratch_bytes() const;

 private:
  // Logits after bias, suppression and penalties; -inf is out, the rest is finite.
  void Adjust(const SampleInput& input);
  void Penalize(const SampleInput& input);
  // Fills candidates_ with all ids that are not out, in the order of ids; returns how many.
  size_t CollectCandidates();
  // The filters keep candidates_[0, result) with their weights_, in the order that the draw walks them.
  size_t Filter(const SamplingOptions& options);
  size_t KeepTopP(double top_p, size_t count, size_t sorted);
  size_t KeepMinP(double min_p, size_t count);
  // Puts the largest of candidates_[begin, count) into [begin, end), sorted.
  void SortLargest(size_t begin, size_t end, size_t count);
  void Weigh(size_t begin, size_t end);
  TokenId Draw(size_t count, double uniform) const;

  std::vector<float> adjusted_;        // [vocabulary]
  std::vector<TokenId> candidates_;    // [vocabulary]
  std::vector<double> weights_;        // [vocabulary], of candidates_: exp((logit - largest) / temperature)
  std::vector<uint32_t> occurrences_;  // [vocabulary], all 0 between calls
  double largest_ = 0;                 // of adjusted_
  double temperature_ = 1;
};

// Log probability of `token` and of the `alternatives` most probable ones, from raw logits: log-softmax with
// the sum in double and in the order of ids. NaN counts as -inf. REQUIRES: token < logits.size().
TokenLogprobs ComputeLogprobs(absl::Span<const float> logits, TokenId token, uint32_t alternatives);

// Uniform in [0, 1), a pure function of (seed, position): Philox4x32-10, Salmon et al., SC'11. The counter is
// the position, the key the seed; the result is the upper 53 of the lower 64 bits.
double CounterRandom(uint64_t seed, uint64_t position);

}  // namespace millrace
