#include "coordinator/scheduler/result_check.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

ExpectedResult Expect(const PlanSegment& segment) {
  ExpectedResult expected;
  expected.sequence = segment.sequence;
  expected.position = segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
  if (segment.sampling) {
    expected.token = true;
    expected.logprobs = segment.sampling->logprobs;
    expected.suppressed_ids = segment.suppressed_ids;
  }
  if (segment.prompt_logprobs) {
    expected.first_prompt_position = segment.first_position + 1;
    expected.prompt_ids.assign(segment.token_ids.begin() + 1, segment.token_ids.end());
    if (segment.next_prompt_id) expected.prompt_ids.push_back(*segment.next_prompt_id);
    expected.prompt_alternatives = *segment.prompt_logprobs;
  }
  return expected;
}

template <typename... Args>
absl::Status Misfit(const Args&... args) {
  return absl::InternalError(absl::StrCat(args...));
}

absl::Status CheckToken(const ExpectedResult& expected, const SequenceResult& result) {
  if (result.token.has_value() != expected.token) {
    return Misfit(result.token ? "a token was sampled where none was asked for"
                               : "the sampled token is missing");
  }
  if (result.logprobs.has_value() != (expected.token && expected.logprobs)) {
    return Misfit("log probabilities of the sampled token are ", result.logprobs ? "unasked for" : "missing");
  }
  if (!expected.token) return absl::OkStatus();
  if (result.position != expected.position) {
    return Misfit("sampled at position ", result.position, ", planned ", expected.position);
  }
  const auto& suppressed = expected.suppressed_ids;
  if (std::find(suppressed.begin(), suppressed.end(), *result.token) != suppressed.end()) {
    return Misfit("token ", *result.token, " was sampled though suppressed");
  }
  if (!result.logprobs) return absl::OkStatus();
  if (result.logprobs->token != *result.token) {
    return Misfit("log probability of token ", result.logprobs->token, " given for sampled token ",
                  *result.token);
  }
  if (result.logprobs->top.size() > *expected.logprobs) {
    return Misfit(result.logprobs->top.size(), " alternatives, asked for ", *expected.logprobs);
  }
  return absl::OkStatus();
}

absl::Status CheckPromptLogprobs(const ExpectedResult& expected, const SequenceResult& result) {
  const auto& got = result.prompt_logprobs;
  if (got.size() != expected.prompt_ids.size()) {
    return Misfit("log probabilities of ", got.size(), " prompt tokens, planned ",
                  expected.prompt_ids.size());
  }
  if (got.empty()) return absl::OkStatus();
  if (result.first_prompt_position != expected.first_prompt_position) {
    return Misfit("prompt log probabilities from position ", result.first_prompt_position, ", planned ",
                  expected.first_prompt_position);
  }
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i].token != expected.prompt_ids[i]) {
      return Misfit("log probability of token ", got[i].token, " at prompt position ",
                    expected.first_prompt_position + i, ", which holds ", expected.prompt_ids[i]);
    }
    if (got[i].top.size() > expected.prompt_alternatives) {
      return Misfit(got[i].top.size(), " alternatives for a prompt token, asked for ",
                    expected.prompt_alternatives);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckResult(const ExpectedResult& expected, const SequenceResult& result) {
  if (result.sequence != expected.sequence) {
    return Misfit("it is of sequence ", result.sequence.value(), ", planned ", expected.sequence.value());
  }
  RETURN_IF_ERROR(CheckToken(expected, result));
  return CheckPromptLogprobs(expected, result);
}

}  // namespace

std::vector<ExpectedResult> ExpectedResults(const MicrobatchPlan& plan) {
  std::vector<ExpectedResult> expected;
  for (const PlanSegment& segment : plan.segments) {
    if (segment.sampling || segment.prompt_logprobs) expected.push_back(Expect(segment));
  }
  return expected;
}

absl::Status CheckResults(MicrobatchId id, absl::Span<const ExpectedResult> expected,
                          absl::Span<const SequenceResult> results) {
  if (results.size() != expected.size()) {
    return Misfit("microbatch ", id.value(), " brought ", results.size(), " results, planned ",
                  expected.size());
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    const absl::Status status = CheckResult(expected[i], results[i]);
    if (!status.ok()) {
      return Misfit("microbatch ", id.value(), ", result ", i, " of sequence ", expected[i].sequence.value(),
                    " does not fit its plan: ", status.message());
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace
