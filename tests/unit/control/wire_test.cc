// Plans and results on the wire: what one side writes is what the other reads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "coordinator/pipeline/plan_messages.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/control/stage_messages.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Every field is set, each to another value.
PlanSegment FullSegment() {
  PlanSegment segment;
  segment.sequence = SequenceId(uint64_t{1} << 40);
  segment.first_position = 17;
  segment.token_ids = {5, 0, 49151};
  segment.block_ids = {3, 1, UINT32_MAX};
  SamplingOptions& sampling = segment.sampling.emplace();
  sampling.temperature = 0.25f;
  sampling.top_k = 40;
  sampling.top_p = 0.95f;
  sampling.min_p = 0.05f;
  sampling.repetition_penalty = 1.1f;
  sampling.presence_penalty = -0.5f;
  sampling.frequency_penalty = 0.75f;
  sampling.seed = UINT64_MAX;
  sampling.logit_bias = {{7, -100.0f}, {9, 2.5f}};
  sampling.logprobs = 0;
  segment.suppressed_ids = {2, 4};
  segment.history = {8, 6, 4};
  segment.history_prompt_tokens = 2;
  segment.prompt_logprobs = 5;
  segment.next_prompt_id = 0;
  return segment;
}

MicrobatchPlan FullPlan() {
  MicrobatchPlan plan;
  plan.id = MicrobatchId(12);
  plan.segments = {FullSegment(), PlanSegment()};
  plan.segments[1].sequence = SequenceId(2);
  plan.segments[1].token_ids = {1};
  return plan;
}

void ExpectSame(const SamplingOptions& a, const SamplingOptions& b) {
  EXPECT_EQ(a.temperature, b.temperature);
  EXPECT_EQ(a.top_k, b.top_k);
  EXPECT_EQ(a.top_p, b.top_p);
  EXPECT_EQ(a.min_p, b.min_p);
  EXPECT_EQ(a.repetition_penalty, b.repetition_penalty);
  EXPECT_EQ(a.presence_penalty, b.presence_penalty);
  EXPECT_EQ(a.frequency_penalty, b.frequency_penalty);
  EXPECT_EQ(a.seed, b.seed);
  EXPECT_EQ(a.logit_bias, b.logit_bias);
  EXPECT_EQ(a.logprobs, b.logprobs);
}

TEST(PlanWireTest, KeepsEveryFieldOfASegment) {
  const MicrobatchPlan plan = FullPlan();
  const absl::StatusOr<StageBatch> batch = ToStageBatch(ToWirePlan(Epoch(77), plan), 4);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(batch->epoch, Epoch(77));
  EXPECT_EQ(batch->id, MicrobatchId(12));
  EXPECT_EQ(batch->rows(), 4u);
  ASSERT_EQ(batch->segments.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const PlanSegment& from = plan.segments[i];
    const StageSegment& to = batch->segments[i];
    EXPECT_EQ(to.sequence, from.sequence);
    EXPECT_EQ(to.first_position, from.first_position);
    EXPECT_EQ(to.token_ids, from.token_ids);
    EXPECT_EQ(to.block_ids, from.block_ids);
    ASSERT_EQ(to.sampling.has_value(), from.sampling.has_value());
    if (from.sampling.has_value()) ExpectSame(*to.sampling, *from.sampling);
    EXPECT_EQ(to.suppressed_ids, from.suppressed_ids);
    EXPECT_EQ(to.history, from.history);
    EXPECT_EQ(to.history_prompt_tokens, from.history_prompt_tokens);
    EXPECT_EQ(to.prompt_logprobs, from.prompt_logprobs);
    EXPECT_EQ(to.next_prompt_id, from.next_prompt_id);
  }
}

TEST(PlanWireTest, TellsAbsentOptionsFromZeroes) {
  MicrobatchPlan plan = FullPlan();
  plan.segments.resize(1);
  plan.segments[0].sampling = SamplingOptions();
  plan.segments[0].prompt_logprobs = 0;
  plan.segments[0].next_prompt_id.reset();
  const absl::StatusOr<StageBatch> batch = ToStageBatch(ToWirePlan(Epoch(1), plan), 4);
  ASSERT_TRUE(batch.ok());
  ASSERT_TRUE(batch->segments[0].sampling.has_value());
  EXPECT_FALSE(batch->segments[0].sampling->logprobs.has_value());
  EXPECT_EQ(batch->segments[0].prompt_logprobs, std::optional<uint32_t>(0));
  EXPECT_FALSE(batch->segments[0].next_prompt_id.has_value());
}

TEST(PlanWireTest, RefusesPlansOfTheWrongSize) {
  EXPECT_EQ(ToStageBatch(ToWirePlan(Epoch(1), FullPlan()), 3).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ToStageBatch(v1::Plan(), 3).status().code(), absl::StatusCode::kInvalidArgument);
  v1::Plan rowless;
  rowless.add_segments();
  EXPECT_EQ(ToStageBatch(rowless, 3).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PlanWireTest, RefusesBiasesWithoutValues) {
  v1::Plan plan = ToWirePlan(Epoch(1), FullPlan());
  plan.mutable_segments(0)->mutable_sampling()->add_bias_ids(1);
  const absl::Status status = ToStageBatch(plan, 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("plan 12: 3 bias ids, 2 values"));
}

class ResultWireTest : public ::testing::Test {
 protected:
  static StageOutput Output(std::vector<SequenceResult> results) {
    StageOutput output;
    output.epoch = Epoch(3);
    output.microbatch = MicrobatchId(4);
    output.rows = 5;
    output.stamps.resize(2);
    output.stamps[1].ended_ns = 99;
    output.results = std::move(results);
    return output;
  }
  HopMessage Message(std::vector<SequenceResult> results) {
    return ToHopMessage(Output(std::move(results)), pool_);
  }

  HopMessage Raw(const std::string& bytes) {
    HopMessage message;
    message.kind = HopKind::kResult;
    message.payload = pool_.Get(bytes.size());
    std::copy(bytes.begin(), bytes.end(), message.payload->data);
    return message;
  }

  BufferPool pool_{4};
};

TEST_F(ResultWireTest, KeepsEveryField) {
  SequenceResult full;
  full.sequence = SequenceId(UINT64_MAX);
  full.position = 40;
  full.token = 0;
  full.logprobs = TokenLogprobs{0, -0.5f, {{3, -0.25f}, {9, -kInfinity}}};
  full.first_prompt_position = 38;
  full.prompt_logprobs = {{11, -1.5f, {}}, {12, -2.5f, {{1, -0.125f}}}};
  SequenceResult bare;
  bare.sequence = SequenceId(2);
  const HopMessage message = Message({full, bare});
  EXPECT_EQ(message.kind, HopKind::kResult);
  EXPECT_EQ(message.epoch, Epoch(3));
  EXPECT_EQ(message.microbatch, MicrobatchId(4));
  EXPECT_EQ(message.rows, 5u);
  ASSERT_EQ(message.stamps.size(), 2u);
  EXPECT_EQ(message.stamps[1].ended_ns, 99);
  const auto results = ParseResult(message);
  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_EQ(results->size(), 2u);
  const SequenceResult& back = (*results)[0];
  EXPECT_EQ(back.sequence, full.sequence);
  EXPECT_EQ(back.position, 40u);
  EXPECT_EQ(back.token, std::optional<TokenId>(0));
  ASSERT_TRUE(back.logprobs.has_value());
  EXPECT_EQ(back.logprobs->token, 0u);
  EXPECT_EQ(back.logprobs->logprob, -0.5f);
  EXPECT_EQ(back.logprobs->top, full.logprobs->top);
  EXPECT_EQ(back.first_prompt_position, 38u);
  ASSERT_EQ(back.prompt_logprobs.size(), 2u);
  EXPECT_EQ(back.prompt_logprobs[1].token, 12u);
  EXPECT_EQ(back.prompt_logprobs[1].logprob, -2.5f);
  EXPECT_EQ(back.prompt_logprobs[1].top, full.prompt_logprobs[1].top);
  EXPECT_FALSE((*results)[1].token.has_value());
  EXPECT_FALSE((*results)[1].logprobs.has_value());
  EXPECT_TRUE((*results)[1].prompt_logprobs.empty());
}

TEST_F(ResultWireTest, KeepsAMicrobatchWithoutResults) {
  const auto results = ParseResult(Message({}));
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_TRUE(results->empty());
}

TEST_F(ResultWireTest, PassesActivationsOnWithoutACopy) {
  const std::shared_ptr<PooledBuffer> activations = pool_.Get(16);
  StageOutput output = Output({});
  output.activations = activations;
  const HopMessage message = ToHopMessage(std::move(output), pool_);
  EXPECT_EQ(message.kind, HopKind::kActivations);
  EXPECT_EQ(message.payload, activations);
  EXPECT_EQ(ParseResult(message).status().code(), absl::StatusCode::kInternal);
}

TEST_F(ResultWireTest, RefusesWhatIsNoResult) {
  for (const std::string& bytes :
       {std::string("\xff\xff\xff"), std::string("\x0a\x7f"), std::string("\x0a")}) {
    EXPECT_EQ(ParseResult(Raw(bytes)).status().code(), absl::StatusCode::kInternal) << bytes;
  }
  HopMessage empty = Raw("");
  empty.payload = nullptr;
  EXPECT_EQ(ParseResult(empty).status().code(), absl::StatusCode::kInternal);
}

TEST_F(ResultWireTest, RefusesNumbersThatAreNoLogProbabilities) {
  for (const float bad : {std::nanf(""), -std::nanf(""), kInfinity}) {
    SequenceResult chosen, top, prompt, prompt_top;
    chosen.logprobs = TokenLogprobs{1, bad, {}};
    top.logprobs = TokenLogprobs{1, -1, {{1, -1.0f}, {2, bad}, {3, -1.0f}}};
    prompt.prompt_logprobs = {{1, -1, {}}, {2, bad, {}}};
    prompt_top.prompt_logprobs = {{1, -1, {{2, bad}}}};
    for (const SequenceResult& result : {chosen, top, prompt, prompt_top}) {
      EXPECT_EQ(ParseResult(Message({SequenceResult(), result})).status().code(), absl::StatusCode::kInternal)
          << bad;
    }
  }
}

TEST_F(ResultWireTest, RefusesTooManyAlternatives) {
  SequenceResult result;
  result.logprobs = TokenLogprobs{1, -1, {}};
  for (int i = 0; i < kMaxLogprobs; ++i) result.logprobs->top.emplace_back(i, -1.0f);
  EXPECT_TRUE(ParseResult(Message({result})).ok());
  result.logprobs->top.emplace_back(99, -1.0f);
  EXPECT_EQ(ParseResult(Message({result})).status().code(), absl::StatusCode::kInternal);
}

// Rows of their own that bring all that a row can, with numbers that take the most bytes; and one segment of
// all rows.
TEST_F(ResultWireTest, IsNeverLargerThanItsBound) {
  TokenLogprobs largest{UINT32_MAX, -1.5f, {}};
  for (int i = 0; i < kMaxLogprobs; ++i) largest.top.emplace_back(UINT32_MAX, -1.5f);
  for (const uint32_t rows : {1u, 2u, 128u, 4096u}) {
    SequenceResult result;
    result.sequence = SequenceId(UINT64_MAX);
    result.position = UINT32_MAX;
    result.token = UINT32_MAX;
    result.logprobs = largest;
    result.first_prompt_position = UINT32_MAX;
    result.prompt_logprobs = {largest};
    EXPECT_LE(Message(std::vector<SequenceResult>(rows, result)).payload->size, MaxResultBytes(rows));
    result.prompt_logprobs.assign(rows, largest);
    EXPECT_LE(Message({result}).payload->size, MaxResultBytes(rows));
  }
}

}  // namespace
}  // namespace millrace
