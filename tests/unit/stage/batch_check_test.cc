#include <cmath>
#include <functional>
#include <limits>
#include <ostream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/stage/stage_model.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

StageLimits Limits() {
  StageLimits limits;
  limits.max_rows = 8;
  limits.num_blocks = 20;
  limits.block_tokens = 16;
  limits.vocabulary_size = 100;
  limits.context_tokens = 64;
  return limits;
}

StageSegment Segment(uint64_t sequence, uint32_t first_position, std::vector<TokenId> ids,
                     std::vector<BlockId> blocks) {
  StageSegment segment;
  segment.sequence = SequenceId(sequence);
  segment.first_position = first_position;
  segment.token_ids = std::move(ids);
  segment.block_ids = std::move(blocks);
  return segment;
}

// A prefill chunk of positions 14..17, and a decode of position 40 that samples.
StageBatch ValidBatch() {
  StageBatch batch;
  batch.epoch = Epoch(1);
  batch.id = MicrobatchId(7);
  batch.segments.push_back(Segment(11, 14, {5, 6, 7, 99}, {3, 0}));
  batch.segments.push_back(Segment(12, 40, {1}, {19, 5, 6}));
  batch.segments[0].prompt_logprobs = 32;
  batch.segments[0].next_prompt_id = 99;
  SamplingOptions& options = batch.segments[1].sampling.emplace();
  options.repetition_penalty = 1.1f;
  options.top_p = 1;
  options.min_p = 1;
  options.presence_penalty = -2;
  options.frequency_penalty = 2;
  options.logit_bias = {{99, -100.f}, {0, 3}};
  options.logprobs = 32;
  batch.segments[1].suppressed_ids = {2, 99};
  batch.segments[1].history.assign(41, 9);
  batch.segments[1].history_prompt_tokens = 41;
  return batch;
}

TEST(CheckBatchTest, TakesAValidBatch) {
  EXPECT_EQ(CheckBatch(ValidBatch(), Limits()), absl::OkStatus());
}

TEST(CheckBatchTest, TakesABatchAtEveryLimit) {
  StageBatch batch;
  batch.segments.push_back(Segment(1, 56, std::vector<TokenId>(8, 99), {16, 17, 18, 19}));
  EXPECT_EQ(CheckBatch(batch, Limits()), absl::OkStatus());
}

TEST(CheckBatchTest, LetsSequencesShareBlocksThatAreOnlyRead) {
  StageBatch batch;
  batch.segments.push_back(Segment(1, 16, {1}, {3, 4}));
  batch.segments.push_back(Segment(2, 31, {1}, {3, 5}));
  batch.segments.push_back(Segment(3, 16, {1}, {3, 6}));
  EXPECT_EQ(CheckBatch(batch, Limits()), absl::OkStatus());
}

struct BadBatch {
  std::string name;
  std::function<void(StageBatch&)> spoil;
  std::string message;  // must be in it
};

void PrintTo(const BadBatch& bad, std::ostream* out) {
  *out << bad.name;
}

class CheckBatchRefusesTest : public ::testing::TestWithParam<BadBatch> {};

TEST_P(CheckBatchRefusesTest, WithAMessageThatSaysWhat) {
  StageBatch batch = ValidBatch();
  GetParam().spoil(batch);
  const absl::Status status = CheckBatch(batch, Limits());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("microbatch 7"));
  EXPECT_THAT(message, HasSubstr(GetParam().message));
  EXPECT_THAT(message, Not(HasSubstr("\n")));
}

SamplingOptions& Options(StageBatch& batch) {
  return *batch.segments[1].sampling;
}

std::vector<BadBatch> BadRowsAndBlocks() {
  return {
      {"NoSegments", [](StageBatch& b) { b.segments.clear(); }, "0 segments"},
      {"NoRowsInASegment", [](StageBatch& b) { b.segments[0].token_ids.clear(); }, "sequence 11: no rows"},
      {"TooManyRows", [](StageBatch& b) { b.segments[0].token_ids.assign(8, 1); }, "9 rows; must be"},
      {"SequenceTwice", [](StageBatch& b) { b.segments[0].sequence = SequenceId(12); },
       "sequence 12 has two segments"},
      {"TokenId", [](StageBatch& b) { b.segments[0].token_ids[2] = 100; },
       "token_ids[2] is 100; must be below"},
      {"PastTheContext",
       [](StageBatch& b) {
         b.segments[0].first_position = 61;
         b.segments[0].block_ids = {0, 1, 2, 3, 4};
       },
       "end at 65; the context is 64"},
      {"PositionThatWouldWrap", [](StageBatch& b) { b.segments[0].first_position = ~0u - 1; },
       "end at 4294967298"},
      {"TooFewBlocks", [](StageBatch& b) { b.segments[1].block_ids.pop_back(); }, "sequence 12: 2 block ids"},
      {"MoreBlocksThanThereAre", [](StageBatch& b) { b.segments[0].block_ids.assign(21, 0); },
       "21 block ids"},
      {"BlockId", [](StageBatch& b) { b.segments[0].block_ids[1] = 20; },
       "block_ids[1] is 20; must be below"},
      {"UnneededBlockId", [](StageBatch& b) { b.segments[0].block_ids.push_back(20); }, "block_ids[2] is 20"},
      {"BlockTwiceInATable",
       [](StageBatch& b) {
         b.segments[0].block_ids = {4, 4};
       },
       "sequence 11: block 4 is twice"},
      {"ReadBlockTwiceInATable",
       [](StageBatch& b) {
         b.segments[1].block_ids = {8, 8, 9};
       },
       "block 8 is twice"},
      {"BlockWrittenByBoth", [](StageBatch& b) { b.segments[0].block_ids[1] = 6; },
       "block 6 is used by sequences"},
      {"BlockWrittenByOneReadByTheOther", [](StageBatch& b) { b.segments[0].block_ids[1] = 19; },
       "block 19 is used by sequences 11 and 12"},
      {"BlockReservedByOneReadByTheOther", [](StageBatch& b) { b.segments[0].block_ids.push_back(19); },
       "block 19 is used by sequences"},
  };
}

std::vector<BadBatch> BadSampling() {
  return {
      {"HistoryTooShort", [](StageBatch& b) { b.segments[1].history.pop_back(); },
       "history of 40 tokens; must be 41"},
      {"HistoryTooLong", [](StageBatch& b) { b.segments[1].history.push_back(1); }, "history of 42 tokens"},
      {"HistoryUnneeded", [](StageBatch& b) { b.segments[0].history = {1}; }, "must be 0"},
      {"HistoryPrompt", [](StageBatch& b) { b.segments[1].history_prompt_tokens = 42; },
       "history_prompt_tokens is 42"},
      {"HistoryId", [](StageBatch& b) { b.segments[1].history[3] = 100; }, "history[3] is 100"},
      {"SuppressedId", [](StageBatch& b) { b.segments[1].suppressed_ids[1] = 100; },
       "suppressed_ids[1] is 100"},
      {"SuppressedCount", [](StageBatch& b) { b.segments[1].suppressed_ids.assign(101, 1); },
       "101 suppressed ids"},
      {"PromptLogprobs", [](StageBatch& b) { b.segments[0].prompt_logprobs = 33; }, "prompt_logprobs is 33"},
      {"NextPromptId", [](StageBatch& b) { b.segments[0].next_prompt_id = 100; }, "next_prompt_id is 100"},
      {"Logprobs", [](StageBatch& b) { Options(b).logprobs = 33; }, "logprobs is 33; must be at most 32"},
      {"TemperatureNan", [](StageBatch& b) { Options(b).temperature = kNan; }, "temperature is nan"},
      {"TemperatureNegative", [](StageBatch& b) { Options(b).temperature = -0.1f; }, "temperature is -0.1"},
      {"TemperatureInfinite", [](StageBatch& b) { Options(b).temperature = kInf; }, "temperature is inf"},
      {"TopPZero", [](StageBatch& b) { Options(b).top_p = 0; }, "top_p is 0; must be in (0, 1]"},
      {"TopPAboveOne", [](StageBatch& b) { Options(b).top_p = 1.01f; }, "top_p is 1.01"},
      {"TopPNan", [](StageBatch& b) { Options(b).top_p = kNan; }, "top_p is nan"},
      {"MinPNegative", [](StageBatch& b) { Options(b).min_p = -1; }, "min_p is -1"},
      {"MinPAboveOne", [](StageBatch& b) { Options(b).min_p = 2; }, "min_p is 2"},
      {"RepetitionZero", [](StageBatch& b) { Options(b).repetition_penalty = 0; }, "repetition_penalty is 0"},
      {"RepetitionInfinite", [](StageBatch& b) { Options(b).repetition_penalty = kInf; },
       "repetition_penalty is inf"},
      {"PresenceLow", [](StageBatch& b) { Options(b).presence_penalty = -2.1f; }, "presence_penalty is -2.1"},
      {"PresenceNan", [](StageBatch& b) { Options(b).presence_penalty = kNan; }, "presence_penalty is nan"},
      {"FrequencyHigh", [](StageBatch& b) { Options(b).frequency_penalty = 2.1f; },
       "frequency_penalty is 2.1"},
      {"BiasId", [](StageBatch& b) { Options(b).logit_bias[0].first = 100; }, "logit_bias[0] is 100"},
      {"BiasNan", [](StageBatch& b) { Options(b).logit_bias[1].second = kNan; },
       "logit_bias of token 0 is nan"},
      {"BiasTwice", [](StageBatch& b) { Options(b).logit_bias[0].first = 0; }, "names token 0 twice"},
  };
}

std::string NameOf(const ::testing::TestParamInfo<BadBatch>& info) {
  return info.param.name;
}
INSTANTIATE_TEST_SUITE_P(RowsAndBlocks, CheckBatchRefusesTest, ::testing::ValuesIn(BadRowsAndBlocks()),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Sampling, CheckBatchRefusesTest, ::testing::ValuesIn(BadSampling()), NameOf);

TEST(CheckBatchTest, RefusesPenaltiesWithoutHistory) {
  StageBatch batch = ValidBatch();
  batch.segments[1].history.clear();
  batch.segments[1].history_prompt_tokens = 0;
  EXPECT_THAT(std::string(CheckBatch(batch, Limits()).message()), HasSubstr("history of 0 tokens"));
}

TEST(CheckBatchTest, RefusesEverythingUnderEmptyLimits) {
  EXPECT_EQ(CheckBatch(ValidBatch(), StageLimits()).code(), absl::StatusCode::kInvalidArgument);
  StageLimits no_blocks = Limits();
  no_blocks.block_tokens = 0;
  EXPECT_EQ(CheckBatch(ValidBatch(), no_blocks).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace millrace
