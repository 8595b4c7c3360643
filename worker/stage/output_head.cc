#include "worker/stage/output_head.h"

#include <algorithm>

#include "common/check.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

bool HasResult(const StageSegment& segment) {
  return segment.sampling.has_value() || segment.prompt_logprobs.has_value();
}

// The prompt token that follows row i of the segment, if there is one.
std::optional<TokenId> NextPromptId(const StageSegment& segment, size_t i) {
  if (i + 1 < segment.token_ids.size()) return segment.token_ids[i + 1];
  return segment.next_prompt_id;
}

}  // namespace

absl::StatusOr<std::unique_ptr<OutputHead>> OutputHead::Create(const HyperParameters& hyper_parameters,
                                                               StageShards& shards) {
  std::unique_ptr<OutputHead> head(new OutputHead(hyper_parameters, shards));
  ASSIGN_OR_RETURN(head->logits_,
                   FloatBuffer::Allocate("logits", {kMaxLogitRows, hyper_parameters.vocabulary_size}));
  return head;
}

uint64_t OutputHead::bytes() const {
  return sampler_.scratch_bytes() + questions_.bytes() + logits_.bytes();
}

absl::StatusOr<std::vector<SequenceResult>> OutputHead::Sample(const StageBatch& batch,
                                                               absl::Span<const float> residual) {
  std::vector<SequenceResult> results = EmptyResults(batch);
  const std::vector<WantedLogits> wanted = FindWanted(batch, results);
  std::vector<uint32_t> rows;
  for (size_t begin = 0; begin < wanted.size(); begin += kMaxLogitRows) {
    const size_t count = std::min<size_t>(kMaxLogitRows, wanted.size() - begin);
    rows.clear();
    for (size_t i = 0; i < count; ++i) rows.push_back(wanted[begin + i].row);
    if (shards_.samples()) {
      const absl::Span<const WantedLogits> these = absl::MakeConstSpan(wanted).subspan(begin, count);
      ASSIGN_OR_RETURN(const bool sampled, SampleOnDevice(these, rows));
      if (sampled) continue;
    }
    ASSIGN_OR_RETURN(const absl::Span<const float> logits, Logits(rows, residual));
    for (size_t i = 0; i < count; ++i) {
      Answer(wanted[begin + i], logits.subspan(i * shape_.vocabulary_size, shape_.vocabulary_size));
    }
  }
  return results;
}

absl::StatusOr<bool> OutputHead::SampleOnDevice(absl::Span<const WantedLogits> wanted,
                                                absl::Span<const uint32_t> rows) {
  const absl::Span<const kernels::SampleRow> asked = questions_.Ask(wanted);
  if (kernels::SampleEntries(asked) > kernels::kMaxSampleEntries) return false;
  ASSIGN_OR_RETURN(const kernels::SampleResult* const answers, shards_.Sample(rows, asked));
  SampleQuestions::Answer(wanted, answers);
  return true;
}

std::vector<SequenceResult> OutputHead::EmptyResults(const StageBatch& batch) {
  std::vector<SequenceResult> results;
  for (const StageSegment& segment : batch.segments) {
    if (!HasResult(segment)) continue;
    SequenceResult& result = results.emplace_back();
    result.sequence = segment.sequence;
    result.position = segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
    if (segment.prompt_logprobs.has_value()) result.first_prompt_position = segment.first_position + 1;
  }
  return results;
}

std::vector<WantedLogits> OutputHead::FindWanted(const StageBatch& batch,
                                                 std::vector<SequenceResult>& results) {
  std::vector<WantedLogits> all;
  uint32_t row = 0;
  SequenceResult* result = results.data();
  for (const StageSegment& segment : batch.segments) {
    for (size_t i = 0; i < segment.token_ids.size(); ++i, ++row) {
      WantedLogits wanted{row, &segment, result, std::nullopt, false};
      if (segment.prompt_logprobs.has_value()) wanted.next_prompt_id = NextPromptId(segment, i);
      wanted.sample = segment.sampling.has_value() && i + 1 == segment.token_ids.size();
      if (wanted.sample || wanted.next_prompt_id.has_value()) all.push_back(wanted);
    }
    if (HasResult(segment)) ++result;
  }
  return all;
}

absl::StatusOr<absl::Span<const float>> OutputHead::Logits(absl::Span<const uint32_t> rows,
                                                           absl::Span<const float> residual) {
  MILLRACE_CHECK(rows.size() <= kMaxLogitRows);
  for (uint32_t row : rows) MILLRACE_CHECK((uint64_t{row} + 1) * shape_.hidden_size <= residual.size());
  RETURN_IF_ERROR(shards_.Logits(rows, residual.data(), logits_.data()));
  return absl::MakeConstSpan(logits_.data(), rows.size() * shape_.vocabulary_size);
}

void OutputHead::Answer(const WantedLogits& wanted, absl::Span<const float> logits) {
  const StageSegment& segment = *wanted.segment;
  SequenceResult& result = *wanted.result;
  if (wanted.next_prompt_id.has_value()) {
    result.prompt_logprobs.push_back(
        ComputeLogprobs(logits, *wanted.next_prompt_id, *segment.prompt_logprobs));
  }
  if (!wanted.sample) return;
  SampleInput input;
  input.logits = logits;
  input.options = &*segment.sampling;
  input.history = segment.history;
  input.history_prompt_tokens = segment.history_prompt_tokens;
  input.suppressed_ids = segment.suppressed_ids;
  input.position = result.position;
  result.token = sampler_.Sample(input);
  if (segment.sampling->logprobs.has_value()) {
    result.logprobs = ComputeLogprobs(logits, *result.token, *segment.sampling->logprobs);
  }
}

}  // namespace millrace
