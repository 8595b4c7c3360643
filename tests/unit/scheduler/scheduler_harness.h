// What the scheduler's tests share: requests, answers to plans, and the actions sorted by kind.
#pragma once

#include <cstdint>
#include <utility>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/scheduler/scheduler.h"
#include "gtest/gtest.h"

namespace millrace::testing {

inline constexpr TokenId kEnd = 2;

inline absl::Time At(int64_t millis) {
  return absl::UnixEpoch() + absl::Milliseconds(millis);
}

// Prompt 100, 101, ...; ends by length only.
inline SequenceRequest MakeRequest(uint64_t id, uint32_t prompt_tokens, uint32_t max_tokens) {
  SequenceRequest request;
  request.id = SequenceId(id);
  for (uint32_t i = 0; i < prompt_tokens; ++i) request.prompt.push_back(100 + i);
  request.max_tokens = max_tokens;
  return request;
}

// The answer that fits a plan: `token` wherever one is asked for.
inline std::vector<SequenceResult> Answer(const MicrobatchPlan& plan, TokenId token = 50) {
  std::vector<SequenceResult> results;
  for (const PlanSegment& segment : plan.segments) {
    if (!segment.sampling && !segment.prompt_logprobs) continue;
    SequenceResult& result = results.emplace_back();
    result.sequence = segment.sequence;
    result.position = segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
    if (segment.sampling) {
      result.token = token;
      if (segment.sampling->logprobs) result.logprobs = TokenLogprobs{token, -1.5f, {}};
    }
    if (!segment.prompt_logprobs) continue;
    result.first_prompt_position = segment.first_position + 1;
    for (size_t i = 1; i < segment.token_ids.size(); ++i)
      result.prompt_logprobs.push_back({segment.token_ids[i], -2.0f, {}});
    if (segment.next_prompt_id) result.prompt_logprobs.push_back({*segment.next_prompt_id, -2.0f, {}});
  }
  return results;
}

struct Actions {
  std::vector<PromptLogprobsReady> prompt_logprobs;
  std::vector<TokenReady> tokens;
  std::vector<SequenceFinished> finished;
};

inline Actions Take(Scheduler& scheduler) {
  Actions sorted;
  for (SchedulerAction& action : scheduler.TakeActions()) {
    if (auto* logprobs = std::get_if<PromptLogprobsReady>(&action))
      sorted.prompt_logprobs.push_back(std::move(*logprobs));
    if (auto* token = std::get_if<TokenReady>(&action)) sorted.tokens.push_back(std::move(*token));
    if (auto* finished = std::get_if<SequenceFinished>(&action))
      sorted.finished.push_back(std::move(*finished));
  }
  return sorted;
}

inline std::vector<MicrobatchPlan> PlanAll(Scheduler& scheduler, absl::Time now = At(0)) {
  std::vector<MicrobatchPlan> plans;
  while (auto plan = scheduler.PlanNext(now)) plans.push_back(*std::move(plan));
  return plans;
}

inline void Land(Scheduler& scheduler, const MicrobatchPlan& plan, absl::Time now = At(0),
                 TokenId token = 50) {
  const absl::Status status = scheduler.OnResult(plan.id, Answer(plan, token), now);
  ASSERT_TRUE(status.ok()) << status;
  scheduler.CheckInvariants();
}

// Plans and answers, one microbatch at a time, until nothing is left to do; at most `steps` microbatches.
inline void RunToEnd(Scheduler& scheduler, absl::Time now = At(0), int steps = 10000) {
  for (int i = 0; i < steps; ++i) {
    const auto plan = scheduler.PlanNext(now);
    if (!plan) return;
    Land(scheduler, *plan, now);
  }
}

inline SchedulerOptions SmallOptions() {
  SchedulerOptions options;
  options.context_tokens = 1000;
  options.max_rows = 64;
  options.end_tokens = {kEnd};
  options.prefix_cache = false;  // MakeRequest gives many the same prompt
  return options;
}

inline RingShape Shape(uint32_t stages, uint32_t blocks = 1000, uint32_t block_tokens = 4) {
  return {stages, stages, blocks, block_tokens};
}

}  // namespace millrace::testing
