#include "worker/stage/sample_questions.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/stage/sampler.h"

namespace millrace {
namespace {

TokenLogprobs ToLogprobs(const kernels::SampleResult& answer) {
  const double log_sum = std::log(answer.sum);
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - answer.largest - log_sum);
  };
  TokenLogprobs logprobs;
  logprobs.token = answer.token;
  logprobs.logprob = logprob(answer.logit);
  for (uint32_t i = 0; i < answer.num_alternatives; ++i) {
    logprobs.top.emplace_back(answer.ids[i], logprob(answer.logits[i]));
  }
  return logprobs;
}

}  // namespace

absl::Span<const kernels::SampleRow> SampleQuestions::Ask(absl::Span<const WantedLogits> wanted) {
  rows_.clear();
  seen_.resize(std::max(seen_.size(), 2 * wanted.size()));
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i].next_prompt_id.has_value()) {
      kernels::SampleRow& row = rows_.emplace_back();
      row.row = i;
      row.given_token = *wanted[i].next_prompt_id;
      row.logprobs = true;
      row.alternatives = *wanted[i].segment->prompt_logprobs;
    }
    if (wanted[i].sample) {
      kernels::SampleRow& row = rows_.emplace_back();
      row.row = i;
      AskForToken(wanted[i], row);
    }
  }
  return rows_;
}

void SampleQuestions::AskForToken(const WantedLogits& wanted, kernels::SampleRow& row) {
  const StageSegment& segment = *wanted.segment;
  const SamplingOptions& options = *segment.sampling;
  row.logprobs = options.logprobs.has_value();
  row.alternatives = options.logprobs.value_or(0);
  row.temperature = options.temperature;
  row.top_k = options.top_k;
  row.top_p = options.top_p;
  row.min_p = options.min_p;
  row.repetition_penalty = options.repetition_penalty;
  row.presence_penalty = options.presence_penalty;
  row.frequency_penalty = options.frequency_penalty;
  // A number of 53 bits over 2^53 is exact.
  row.random = static_cast<uint64_t>(CounterRandom(options.seed, wanted.result->position) * 0x1p53);
  row.bias = options.logit_bias;
  row.suppressed = segment.suppressed_ids;
  if (options.needs_history()) row.seen = CountHistory(segment);
}

absl::Span<const std::pair<uint32_t, uint32_t>> SampleQuestions::CountHistory(const StageSegment& segment) {
  std::vector<std::pair<uint32_t, uint32_t>>& seen = seen_[rows_.size() - 1];
  seen.clear();
  // 1 + occurrences in the output; what was only in the prompt has 1.
  for (size_t i = 0; i < segment.history.size(); ++i) {
    uint32_t& occurrences = occurrences_[segment.history[i]];
    occurrences = std::max(occurrences, 1u) + (i >= segment.history_prompt_tokens ? 1 : 0);
  }
  for (TokenId id : segment.history) {
    if (occurrences_[id] == 0) continue;
    seen.emplace_back(id, occurrences_[id] - 1);
    occurrences_[id] = 0;
  }
  return seen;
}

void SampleQuestions::Answer(absl::Span<const WantedLogits> wanted, const kernels::SampleResult* answers) {
  for (const WantedLogits& one : wanted) {
    if (one.next_prompt_id.has_value()) one.result->prompt_logprobs.push_back(ToLogprobs(*answers++));
    if (!one.sample) continue;
    one.result->token = answers->token;
    if (one.segment->sampling->logprobs.has_value()) one.result->logprobs = ToLogprobs(*answers);
    ++answers;
  }
}

}  // namespace millrace
