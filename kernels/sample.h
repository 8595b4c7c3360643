// Chooses tokens from logits, and log probabilities, where the logits are. For backends whose memory is not
// the host's: only ids and the log probabilities that were asked for come back.
//
// Logits are raw; NaN counts as -inf, +inf as the largest float. Order of application and ties:
// SamplingOptions of common/generation.h, which worker/stage/sampler.h implements for the host. Weights,
// exp((logit - largest) / temperature), are counted in units of 2^-44, so that their sums do not depend on
// any order: what is chosen is the host's choice unless the draw, or the end of the nucleus, is that close to
// the border of two tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/types/span.h"

namespace millrace::kernels {

inline constexpr size_t kMaxAlternatives = 32;

// One question about one row of logits.
struct SampleRow {
  size_t row = 0;
  // Either a token that stands there already, whose log probability is asked for; or, below 0, one to choose.
  int64_t given_token = -1;
  bool logprobs = false;      // of the token and of the `alternatives` most probable ones
  uint32_t alternatives = 0;  // at most kMaxAlternatives

  float temperature = 0;  // 0: the largest
  uint32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t random = 0;  // 53 random bits: the draw is random * 2^-53
  // In host memory until Sample returns. Ids are below the vocabulary's size.
  absl::Span<const std::pair<uint32_t, float>> bias;  // each id once
  absl::Span<const uint32_t> suppressed;              // never chosen
  absl::Span<const std::pair<uint32_t, uint32_t>>
      seen;  // each id of prompt or output once; times in the output
};

// The log probability of a token is its logit - largest - log(sum); -inf logits have -inf.
struct SampleResult {
  uint32_t token = 0;
  float logit = 0;    // of the token; this and what follows: only if logprobs were asked for
  float largest = 0;  // of all logits; 0 if all are -inf
  uint32_t num_alternatives = 0;
  double sum = 0;                       // of exp(logit - largest); 1 if all are -inf
  uint32_t ids[kMaxAlternatives] = {};  // the most probable first, ties by lower id
  float logits[kMaxAlternatives] = {};
};

struct SampleArgs {
  const float* logits = nullptr;  // rows of `vocabulary`, row stride `vocabulary`
  size_t vocabulary = 0;
  absl::Span<const SampleRow> rows;  // at most the max_rows of SampleBytes
  size_t max_rows = 0;
  uint8_t* buffer = nullptr;   // Backend::SampleBytes(max_rows, vocabulary) bytes
  uint8_t* staging = nullptr;  // of host memory that copies are made from, as many as SampleStagingBytes()
  SampleResult* results =
      nullptr;  // [rows], in host memory that copies are made to; there when the queue is done
};

// Entries of bias, suppressed and seen of all rows together.
inline constexpr size_t kMaxSampleEntries = 64 * 1024;

size_t SampleEntries(absl::Span<const SampleRow> rows);

}  // namespace millrace::kernels
