#include "coordinator/scheduler/result_check.h"

#include <functional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/scheduler_harness.h"

namespace millrace {
namespace {

using ::millrace::testing::Answer;
using ::testing::HasSubstr;

// A chunk without results, a prompt's end with everything, a decode.
MicrobatchPlan MakePlan() {
  MicrobatchPlan plan;
  plan.id = MicrobatchId(7);
  plan.segments.resize(4);
  plan.segments[0].sequence = SequenceId(1);
  plan.segments[0].token_ids = {5, 6};
  plan.segments[0].next_prompt_id = 7;
  PlanSegment& prompt = plan.segments[1];
  prompt.sequence = SequenceId(2);
  prompt.first_position = 10;
  prompt.token_ids = {20, 21, 22};
  prompt.prompt_logprobs = 2;
  prompt.next_prompt_id = 23;
  PlanSegment& end = plan.segments[2];
  end.sequence = SequenceId(3);
  end.first_position = 4;
  end.token_ids = {30, 31};
  end.prompt_logprobs = 0;
  end.sampling = SamplingOptions();
  end.sampling->logprobs = 1;
  PlanSegment& decode = plan.segments[3];
  decode.sequence = SequenceId(4);
  decode.first_position = 9;
  decode.token_ids = {40};
  decode.sampling = SamplingOptions();
  decode.suppressed_ids = {2, 3};
  return plan;
}

absl::Status Check(const MicrobatchPlan& plan, const std::vector<SequenceResult>& results) {
  return CheckResults(plan.id, ExpectedResults(plan), results);
}

TEST(ResultCheckTest, AcceptsWhatThePlanAskedFor) {
  const MicrobatchPlan plan = MakePlan();
  const auto results = Answer(plan);
  ASSERT_EQ(results.size(), 3u);
  EXPECT_EQ(results[0].prompt_logprobs.size(), 3u);
  EXPECT_EQ(results[1].prompt_logprobs.size(), 1u);
  EXPECT_TRUE(Check(plan, results).ok()) << Check(plan, results);
}

TEST(ResultCheckTest, AcceptsFewerAlternativesThanAskedFor) {
  auto results = Answer(MakePlan());
  results[1].logprobs->top.clear();
  EXPECT_TRUE(Check(MakePlan(), results).ok());
}

TEST(ResultCheckTest, RefusesEverythingElse) {
  using Results = std::vector<SequenceResult>;
  struct Case {
    std::string message;
    std::function<void(Results&)> spoil;
  };
  const Case cases[] = {
      {"brought 2 results, planned 3", [](Results& r) { r.pop_back(); }},
      {"brought 4 results", [](Results& r) { r.push_back(r.back()); }},
      {"it is of sequence 9, planned 2", [](Results& r) { r[0].sequence = SequenceId(9); }},
      {"it is of sequence 3, planned 2", [](Results& r) { std::swap(r[0], r[1]); }},
      {"where none was asked for", [](Results& r) { r[0].token = 1; }},
      {"sampled token is missing", [](Results& r) { r[2].token.reset(); }},
      {"sampled at position 9, planned 10", [](Results& r) { r[2].position = 9; }},
      {"token 3 was sampled though suppressed", [](Results& r) { r[2].token = 3; }},
      {"are missing", [](Results& r) { r[1].logprobs.reset(); }},
      {"are unasked for",
       [](Results& r) {
         r[2].logprobs = TokenLogprobs{50, -1.0f, {}};
       }},
      {"are unasked for",
       [](Results& r) {
         r[0].logprobs = TokenLogprobs{50, -1.0f, {}};
       }},
      {"given for sampled token 50", [](Results& r) { r[1].logprobs->token = 51; }},
      {"2 alternatives, asked for 1",
       [](Results& r) {
         r[1].logprobs->top = {{1, -1.0f}, {2, -2.0f}};
       }},
      {"of 2 prompt tokens, planned 3", [](Results& r) { r[0].prompt_logprobs.pop_back(); }},
      {"of 1 prompt tokens, planned 0", [](Results& r) { r[2].prompt_logprobs.resize(1); }},
      {"from position 10, planned 11", [](Results& r) { r[0].first_prompt_position = 10; }},
      {"of token 99 at prompt position 13, which holds 23",
       [](Results& r) { r[0].prompt_logprobs[2].token = 99; }},
      {"3 alternatives for a prompt token, asked for 2",
       [](Results& r) {
         r[0].prompt_logprobs[1].top = {{1, -1.0f}, {2, -2.0f}, {3, -3.0f}};
       }},
  };
  for (const Case& c : cases) {
    Results results = Answer(MakePlan());
    c.spoil(results);
    const absl::Status status = Check(MakePlan(), results);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
    EXPECT_THAT(std::string(status.message()), HasSubstr("microbatch 7"));
  }
}

}  // namespace
}  // namespace millrace
