// Generate from a client's side: what comes in which order, and what the engine is told.
#include <algorithm>
#include <map>

#include "common/error_reason.h"
#include "gmock/gmock.h"
#include "tests/unit/frontend/frontend_fixture.h"

namespace millrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::StartsWith;

using GenerateTest = FrontendTest;

std::vector<TokenId> Bytes(absl::string_view text) {
  std::vector<TokenId> ids;
  for (char c : text) ids.push_back(ByteToken(c));
  return ids;
}

std::vector<TokenId> Ids(const v1::TokenDelta& delta) {
  return {delta.token_ids().begin(), delta.token_ids().end()};
}

TEST_F(GenerateTest, StreamsStartedTokensAndFinished) {
  StartServer();
  const auto call = Generate(TextRequest("hello world", "mine"));
  const SequenceRequest submitted = engine_.NextSubmit();
  EXPECT_EQ(submitted.prompt, tokenizer_->Encode("hello world", EncodeOptions()));
  const v1::Started started = call->Started();
  EXPECT_EQ(started.request_id(), "mine");
  EXPECT_EQ(started.prompt_tokens(), submitted.prompt.size());

  engine_.Emit(submitted.id, "ab");
  const auto first = call->Next();
  ASSERT_TRUE(first.has_value());
  EXPECT_THAT(first->tokens().text(), StartsWith("a"));
  engine_.Emit(submitted.id, "c");
  engine_.EmitToken(submitted.id, kTinyImEnd);
  engine_.Finish(submitted.id, FinishReason::kEndOfSequence, 4, kTinyImEnd);
  const Outcome rest = call->Rest();
  EXPECT_EQ(first->tokens().text() + rest.tokens.text(), "abc");
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  ASSERT_TRUE(rest.finished.has_value());
  EXPECT_EQ(rest.finished->reason(), v1::FINISH_REASON_END_OF_SEQUENCE);
  EXPECT_EQ(rest.finished->matched_stop().token_id(), kTinyImEnd);
  EXPECT_EQ(rest.finished->usage().prompt_tokens(), 5u);
  EXPECT_EQ(rest.finished->usage().completion_tokens(), 4u);
  EXPECT_EQ(rest.finished->usage().prompt_characters(), 11u);
  EXPECT_EQ(rest.finished->usage().completion_characters(), 3u);
  EXPECT_EQ(rest.finished->timings().queue().seconds(), 1);
  EXPECT_EQ(rest.finished->timings().queue().nanos(), 500000000);
  EXPECT_EQ(rest.finished->timings().prefill().nanos(), 20000000);
  EXPECT_EQ(rest.finished->timings().decode().nanos(), 7);
  ASSERT_EQ(rest.finished->numeric_classes_size(), 2);
  EXPECT_EQ(rest.finished->numeric_classes(0), "cpu");
  EXPECT_EQ(rest.finished->numeric_classes(1), "cuda");
  ExpectIdle();
}

TEST_F(GenerateTest, GivesTheEngineTheDefaults) {
  StartServer();
  const auto call = Generate(TextRequest("hello"));
  const SequenceRequest submitted = engine_.NextSubmit();
  EXPECT_EQ(submitted.sampling.temperature, 1.0f);
  EXPECT_EQ(submitted.sampling.top_k, 0u);
  EXPECT_EQ(submitted.sampling.top_p, 1.0f);
  EXPECT_EQ(submitted.sampling.min_p, 0.0f);
  EXPECT_FALSE(submitted.sampling.needs_history());
  EXPECT_FALSE(submitted.sampling.logprobs.has_value());
  EXPECT_FALSE(submitted.prompt_logprobs.has_value());
  EXPECT_EQ(submitted.max_tokens, options_.model.context_tokens - submitted.prompt.size());
  EXPECT_EQ(submitted.min_tokens, 0u);
  EXPECT_FALSE(submitted.ignore_eos);
  EXPECT_EQ(submitted.deadline, absl::InfiniteFuture());
  EXPECT_EQ(call->Started().seed(), submitted.sampling.seed);
}

TEST_F(GenerateTest, GivesTheEngineWhatWasAskedFor) {
  StartServer();
  v1::GenerateRequest request = TextRequest("hello");
  v1::Sampling* sampling = request.mutable_sampling();
  sampling->set_temperature(0);
  sampling->set_top_k(40);
  sampling->set_top_p(0.5f);
  sampling->set_min_p(0.25f);
  sampling->set_repetition_penalty(1.5f);
  sampling->set_presence_penalty(-2);
  sampling->set_frequency_penalty(2);
  sampling->set_seed(77);
  (*sampling->mutable_logit_bias())[9] = -100;
  (*sampling->mutable_logit_bias())[4] = 1;
  request.mutable_stop()->set_max_tokens(12);
  request.mutable_stop()->set_min_tokens(3);
  request.mutable_stop()->set_ignore_eos(true);
  request.mutable_stop()->add_token_ids(8);
  request.set_logprobs(0);
  request.set_prompt_logprobs(32);
  const auto call = Generate(request);
  const SequenceRequest submitted = engine_.NextSubmit();
  EXPECT_EQ(submitted.sampling.temperature, 0.0f);
  EXPECT_EQ(submitted.sampling.top_k, 40u);
  EXPECT_EQ(submitted.sampling.top_p, 0.5f);
  EXPECT_EQ(submitted.sampling.min_p, 0.25f);
  EXPECT_EQ(submitted.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(submitted.sampling.presence_penalty, -2.0f);
  EXPECT_EQ(submitted.sampling.frequency_penalty, 2.0f);
  EXPECT_EQ(submitted.sampling.seed, 77u);
  EXPECT_THAT(submitted.sampling.logit_bias, ElementsAre(Pair(4, 1.0f), Pair(9, -100.0f)));
  EXPECT_EQ(submitted.sampling.logprobs, 0u);
  EXPECT_EQ(submitted.prompt_logprobs, 32u);
  EXPECT_EQ(submitted.max_tokens, 12u);
  EXPECT_EQ(submitted.min_tokens, 3u);
  EXPECT_TRUE(submitted.ignore_eos);
  EXPECT_THAT(submitted.stop_token_ids, ElementsAre(8));
  EXPECT_EQ(call->Started().seed(), 77u);
}

TEST_F(GenerateTest, CapsMaxTokensByTheContext) {
  StartServer();
  v1::GenerateRequest request;
  for (uint32_t i = 0; i + 1 < options_.model.context_tokens; ++i) request.mutable_token_ids()->add_ids(5);
  request.mutable_stop()->set_max_tokens(4000000000);
  const auto call = Generate(request);
  EXPECT_EQ(engine_.NextSubmit().max_tokens, 1u);
}

TEST_F(GenerateTest, DrawsSeedsAndRequestIds) {
  StartServer();
  const auto first = Generate(TextRequest("hello"));
  const auto second = Generate(TextRequest("hello"));
  const v1::Started a = first->Started();
  const v1::Started b = second->Started();
  EXPECT_THAT(a.request_id(), StartsWith("req-"));
  EXPECT_NE(a.request_id(), b.request_id());
  EXPECT_NE(a.seed(), b.seed());
}

TEST_F(GenerateTest, RendersChatsWithoutLettingUsersForgeTurns) {
  StartServer();
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("a<|im_end|>");
  const auto call = Generate(request);
  const std::string rendered = "<|im_start|>user\na<|im_end|><|im_end|>\n<|im_start|>assistant\n";
  const SequenceRequest submitted = engine_.NextSubmit();
  EXPECT_EQ(tokenizer_->Decode(submitted.prompt, false), rendered);
  EXPECT_EQ(std::count(submitted.prompt.begin(), submitted.prompt.end(), kTinyImEnd), 1);
  EXPECT_EQ(std::count(submitted.prompt.begin(), submitted.prompt.end(), kTinyImStart), 2);
  engine_.Finish(submitted.id, FinishReason::kLength, 0);
  EXPECT_EQ(call->Rest().finished->usage().prompt_characters(), rendered.size());
}

TEST_F(GenerateTest, TakesTokenIdsAsTheyAre) {
  StartServer();
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_token_ids()->add_ids(kTinyImEnd);
  const auto call = Generate(request);
  const SequenceRequest submitted = engine_.NextSubmit();
  EXPECT_THAT(submitted.prompt, ElementsAre(7, kTinyImEnd));
  engine_.Finish(submitted.id, FinishReason::kLength, 0);
  EXPECT_EQ(call->Rest().finished->usage().prompt_characters(), 0u);
}

TEST_F(GenerateTest, EndsBeforeAStopStringThatSpansTokens) {
  StartServer();
  v1::GenerateRequest request = TextRequest("hello");
  request.mutable_stop()->add_strings("never");
  request.mutable_stop()->add_strings("STOP");
  SequenceId id;
  const auto call = Submitted(request, &id);
  engine_.Emit(id, "go STOP and more");
  const FakeEngine::Stopped stop = engine_.NextStop();
  EXPECT_EQ(stop.id, id);
  EXPECT_EQ(stop.output_tokens, 7u);
  // The scheduler had already ended it for another reason.
  engine_.Finish(id, FinishReason::kLength, 16);
  const Outcome outcome = call->Rest();
  EXPECT_EQ(outcome.tokens.text(), "go ");
  EXPECT_EQ(Ids(outcome.tokens), Bytes("go STOP"));
  ASSERT_TRUE(outcome.finished.has_value());
  EXPECT_EQ(outcome.finished->reason(), v1::FINISH_REASON_STOP_SEQUENCE);
  EXPECT_EQ(outcome.finished->matched_stop().text(), "STOP");
  EXPECT_EQ(outcome.finished->usage().completion_tokens(), 7u);
  EXPECT_EQ(outcome.finished->usage().completion_characters(), 3u);
  EXPECT_EQ(engine_.stops_left(), 0u);
  ExpectIdle();
}

TEST_F(GenerateTest, FinishesAStopStringEvenIfTheWorkerIsLostAfterIt) {
  StartServer();
  v1::GenerateRequest request = TextRequest("hello");
  request.mutable_stop()->add_strings("S");
  SequenceId id;
  const auto call = Submitted(request, &id);
  engine_.Emit(id, "aS");
  engine_.NextStop();
  engine_.Fail(id, absl::UnavailableError("worker lost"));
  const Outcome outcome = call->Rest();
  EXPECT_TRUE(outcome.status.ok());
  ASSERT_TRUE(outcome.finished.has_value());
  EXPECT_EQ(outcome.finished->reason(), v1::FINISH_REASON_STOP_SEQUENCE);
}

TEST_F(GenerateTest, ReleasesTheBeginningOfAStopStringAtTheEnd) {
  StartServer();
  v1::GenerateRequest request = TextRequest("hello");
  request.mutable_stop()->add_strings("STOP");
  SequenceId id;
  const auto call = Submitted(request, &id);
  engine_.Emit(id, "a STO");
  engine_.Finish(id, FinishReason::kLength, 5);
  const Outcome outcome = call->Rest();
  EXPECT_EQ(outcome.tokens.text(), "a STO");
  EXPECT_EQ(Ids(outcome.tokens), Bytes("a STO"));
  EXPECT_EQ(outcome.finished->reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_FALSE(outcome.finished->has_matched_stop());
}

TEST_F(GenerateTest, MatchesNoStopStringBeforeMinTokens) {
  StartServer();
  v1::GenerateRequest request = TextRequest("hello");
  request.mutable_stop()->add_strings("x");
  request.mutable_stop()->set_min_tokens(4);
  SequenceId id;
  const auto call = Submitted(request, &id);
  engine_.Emit(id, "axbcx");
  EXPECT_EQ(engine_.NextStop().output_tokens, 5u);
  engine_.Finish(id, FinishReason::kStopSequence, 5);
  EXPECT_EQ(call->Rest().tokens.text(), "axbc");
}

TEST_F(GenerateTest, StopTokensGiveNoTextButAreSent) {
  StartServer();
  v1::GenerateRequest request = TextRequest("hello");
  request.mutable_stop()->add_token_ids(ByteToken('!'));
  SequenceId id;
  const auto call = Submitted(request, &id);
  engine_.Emit(id, "ok!");
  engine_.Finish(id, FinishReason::kStopToken, 3, ByteToken('!'));
  const Outcome outcome = call->Rest();
  EXPECT_EQ(outcome.tokens.text(), "ok");
  EXPECT_EQ(Ids(outcome.tokens), Bytes("ok!"));
  EXPECT_EQ(outcome.finished->reason(), v1::FINISH_REASON_STOP_TOKEN);
  EXPECT_EQ(outcome.finished->matched_stop().token_id(), ByteToken('!'));
  EXPECT_EQ(outcome.finished->usage().completion_characters(), 2u);
}

TEST_F(GenerateTest, NeverSplitsACharacter) {
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  call->Started();
  const std::string emoji = "\xF0\x9F\x98\x80";
  engine_.Emit(id, "a");
  EXPECT_EQ(call->Next()->tokens().text(), "a");
  for (char byte : emoji) engine_.Emit(id, std::string(1, byte));
  const auto event = call->Next();
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->tokens().text(), emoji);
  EXPECT_EQ(Ids(event->tokens()), Bytes(emoji));
  engine_.Emit(id, "\xF0\x9F");
  engine_.Finish(id, FinishReason::kLength, 7);
  const Outcome outcome = call->Rest();
  EXPECT_EQ(outcome.tokens.text(), "\xEF\xBF\xBD");
  EXPECT_EQ(outcome.tokens.token_ids_size(), 2);
  EXPECT_EQ(outcome.finished->usage().completion_characters(), 3u);
}

TEST_F(GenerateTest, ReportsLogprobsWithTheBytesOfTokens) {
  StartServer();
  v1::GenerateRequest request = TextRequest("hello");
  request.set_logprobs(2);
  request.set_prompt_logprobs(1);
  SequenceId id;
  const auto call = Submitted(request, &id);
  const TokenId a = ByteToken('a');
  const TokenId high = ByteToken('\xF0');
  engine_.Act({PromptLogprobsReady{id, 1, {TokenLogprobs{a, -1.5f, {{high, -0.5f}}}}},
               PromptLogprobsReady{id, 2, {TokenLogprobs{high, -2.5f, {}}}},
               TokenReady{id, a, TokenLogprobs{a, -0.25f, {{a, -0.25f}, {kTinyImEnd, -3.0f}}}}});
  engine_.Finish(id, FinishReason::kLength, 1);
  const Outcome outcome = call->Rest();
  ASSERT_EQ(outcome.prompt_logprobs.size(), 2u);
  EXPECT_EQ(outcome.prompt_logprobs[0].first_position(), 1u);
  ASSERT_EQ(outcome.prompt_logprobs[0].positions_size(), 1);
  EXPECT_EQ(outcome.prompt_logprobs[0].positions(0).chosen().token(), "a");
  EXPECT_EQ(outcome.prompt_logprobs[0].positions(0).chosen().logprob(), -1.5f);
  EXPECT_EQ(outcome.prompt_logprobs[0].positions(0).top(0).token(), "\xF0");
  EXPECT_EQ(outcome.prompt_logprobs[1].first_position(), 2u);
  ASSERT_EQ(outcome.tokens.logprobs_size(), 1);
  const v1::PositionLogprobs& position = outcome.tokens.logprobs(0);
  EXPECT_EQ(position.chosen().token_id(), a);
  EXPECT_EQ(position.chosen().logprob(), -0.25f);
  ASSERT_EQ(position.top_size(), 2);
  EXPECT_EQ(position.top(1).token_id(), kTinyImEnd);
  EXPECT_EQ(position.top(1).token(), "<|im_end|>");
  EXPECT_EQ(position.top(1).logprob(), -3.0f);
}

TEST_F(GenerateTest, TellsOfAnEngineThatRefuses) {
  StartServer();
  engine_.RefuseSubmits(absl::ResourceExhaustedError("1024 requests are waiting"));
  const Outcome outcome = Generate(TextRequest("hello", "one"))->Rest();
  EXPECT_FALSE(outcome.started.has_value());
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(outcome.status.error_message(), "1024 requests are waiting");
  EXPECT_EQ(DetailFrom(outcome.status).reason(), "RESOURCE_EXHAUSTED");
  EXPECT_TRUE(DetailFrom(outcome.status).retryable());
  ExpectIdle();
  engine_.RefuseSubmits(absl::OkStatus());
  EXPECT_EQ(Generate(TextRequest("hello", "one"))->Started().request_id(), "one");
}

TEST_F(GenerateTest, TellsOfAnEngineThatFailsMidway) {
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  engine_.Emit(id, "so far");
  engine_.Fail(id, RetryLater(absl::StatusCode::kUnavailable, "WORKER_LOST", "worker 3 (stage 1) was lost"));
  const Outcome outcome = call->Rest();
  EXPECT_EQ(outcome.tokens.text(), "so far");
  EXPECT_FALSE(outcome.finished.has_value());
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailFrom(outcome.status).reason(), "WORKER_LOST");
  EXPECT_TRUE(DetailFrom(outcome.status).retryable());
  ExpectIdle();
}

TEST_F(GenerateTest, EndsASequenceWhosePipelineInventsTokens) {
  StartServer();
  for (const bool in_logprobs : {false, true}) {
    SequenceId id;
    const auto call = Submitted(TextRequest("hello"), &id);
    const TokenId bad = options_.model.vocabulary_size;
    engine_.Act(
        {TokenReady{id, in_logprobs ? 5 : bad, TokenLogprobs{5, -1, {{in_logprobs ? bad : 5, -1.0f}}}}});
    const FakeEngine::Cancelled cancel = engine_.NextCancel();
    EXPECT_EQ(cancel.id, id);
    // An Abort does not make the engine cancel it again. The text thread takes it before the next request.
    EXPECT_THAT(Abort({}, /*all=*/true), testing::SizeIs(1));
    SequenceId next;
    const auto after = Submitted(TextRequest("hello"), &next);
    EXPECT_EQ(engine_.cancels_left(), 0u);
    engine_.Finish(next, FinishReason::kLength, 0);
    EXPECT_TRUE(after->Rest().status.ok());
    engine_.Fail(id, cancel.why);
    const Outcome outcome = call->Rest();
    EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_THAT(outcome.status.error_message(), HasSubstr("320"));
  }
}

TEST_F(GenerateTest, RefusesALiveRequestIdUntilItsEnd) {
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello", "twice"), &id);
  const Outcome second = Generate(TextRequest("hello", "twice"))->Rest();
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(DetailFrom(second.status).reason(), "REQUEST_ID_IN_USE");
  EXPECT_THAT(second.status.error_message(), HasSubstr("\"twice\""));
  // Free as soon as the client knows of the end, each time.
  for (int i = 0; i < 50; ++i) {
    const auto again = i == 0 ? nullptr : Submitted(TextRequest("hello", "twice"), &id);
    engine_.Finish(id, FinishReason::kLength, 0);
    ASSERT_TRUE((again == nullptr ? call : again)->Rest().status.ok());
  }
}

TEST_F(GenerateTest, RefusesAPromptThatFillsTheContext) {
  StartServer();
  const Outcome outcome = Generate(TextRequest(std::string(512, 'z')))->Rest();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailFrom(outcome.status).reason(), "PROMPT_TOO_LONG");
  EXPECT_FALSE(DetailFrom(outcome.status).retryable());
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("512 tokens; the context has 512"));
  ExpectIdle();
  const auto fits = Generate(TextRequest(std::string(511, 'z')));
  EXPECT_EQ(engine_.NextSubmit().prompt.size(), 511u);
}

TEST_F(GenerateTest, RefusesTextThatIsNotUtf8) {
  StartServer();
  const Outcome outcome = Generate(TextRequest("ab\xFF"))->Rest();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailFrom(outcome.status).reason(), "MALFORMED_REQUEST");
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("UTF-8"));
}

TEST_F(GenerateTest, RefusesLargeInputsWithItsOwnWords) {
  StartServer();
  for (const size_t bytes : {(size_t{1} << 20) + 1, size_t{10} << 20, size_t{64} << 20}) {
    const Outcome outcome = Generate(TextRequest(std::string(bytes, 'x')))->Rest();
    EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(DetailFrom(outcome.status).reason(), "INPUT_TOO_LARGE");
    EXPECT_FALSE(DetailFrom(outcome.status).retryable());
    EXPECT_THAT(outcome.status.error_message(), HasSubstr("the limit is "));
  }
  const Outcome just = Generate(TextRequest(std::string(1 << 20, 'x')))->Rest();
  EXPECT_EQ(DetailFrom(just.status).reason(), "PROMPT_TOO_LONG");
  ExpectIdle();
}

TEST_F(GenerateTest, RefusesMoreThanTheTextThreadMayHold) {
  options_.inbox.max_jobs = 1;
  StartServer();
  engine_.HoldSubmits();
  const auto working = Generate(TextRequest("one"));
  engine_.NextSubmitting();
  const auto waiting = Generate(TextRequest("two"));
  WaitForQueuedJobs(1);
  const Outcome refused = Generate(TextRequest("three"))->Rest();
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailFrom(refused.status).reason(), "QUEUE_FULL");
  EXPECT_TRUE(DetailFrom(refused.status).retryable());
  engine_.Release();
  working->Started();
  waiting->Started();
}

TEST_F(GenerateTest, ServesAHundredStreamsAtOnce) {
  StartServer();
  std::map<std::string, std::unique_ptr<Call>> calls;
  for (int i = 0; i < 100; ++i) {
    const std::string id = "r" + std::to_string(i);
    v1::GenerateRequest request = TextRequest("hello", id);
    request.mutable_sampling()->set_seed(i);
    calls[id] = Generate(request);
  }
  std::map<SequenceId, uint64_t> number;
  for (int i = 0; i < 100; ++i) {
    const SequenceRequest submitted = engine_.NextSubmit();
    number[submitted.id] = submitted.sampling.seed;
  }
  for (int round = 0; round < 30; ++round) {
    std::vector<SchedulerAction> actions;
    for (const auto& [id, n] : number) {
      actions.push_back(TokenReady{id, ByteToken(static_cast<char>('a' + (n + round) % 26)), std::nullopt});
    }
    engine_.Act(std::move(actions));
  }
  for (const auto& [id, n] : number) engine_.Finish(id, FinishReason::kLength, 30);
  for (auto& [name, call] : calls) {
    const Outcome outcome = call->Rest();
    std::string expected;
    for (int round = 0; round < 30; ++round)
      expected += static_cast<char>('a' + (outcome.started->seed() + round) % 26);
    EXPECT_EQ(outcome.started->request_id(), name);
    EXPECT_EQ(outcome.tokens.text(), expected);
    EXPECT_TRUE(outcome.status.ok());
  }
  ExpectIdle();
}

}  // namespace
}  // namespace millrace
