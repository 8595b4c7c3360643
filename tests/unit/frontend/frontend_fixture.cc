#include "tests/unit/frontend/frontend_fixture.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "millrace/v1/rpc_status.pb.h"

namespace millrace {

Call::Call(v1::Inference::Stub* stub, const v1::GenerateRequest& request, absl::Duration deadline) {
  if (deadline != absl::InfiniteDuration()) {
    context_.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(deadline));
  }
  reader_ = stub->Generate(&context_, request);
}

std::optional<v1::GenerateEvent> Call::Next() {
  v1::GenerateEvent event;
  if (!reader_->Read(&event)) return std::nullopt;
  return event;
}

v1::Started Call::Started() {
  const std::optional<v1::GenerateEvent> event = Next();
  if (!event.has_value() || !event->has_started()) {
    ADD_FAILURE() << "the stream did not begin with Started";
    return v1::Started();
  }
  return event->started();
}

Outcome Call::Rest() {
  Outcome outcome;
  while (std::optional<v1::GenerateEvent> event = Next()) {
    EXPECT_FALSE(outcome.finished.has_value()) << "an event after Finished";
    if (event->has_started()) {
      outcome.started = event->started();
    } else if (event->has_prompt_logprobs()) {
      outcome.prompt_logprobs.push_back(event->prompt_logprobs());
    } else if (event->has_tokens()) {
      outcome.texts.push_back(event->tokens().text());
      outcome.tokens.set_text(absl::StrCat(outcome.tokens.text(), event->tokens().text()));
      outcome.tokens.mutable_token_ids()->MergeFrom(event->tokens().token_ids());
      outcome.tokens.mutable_logprobs()->MergeFrom(event->tokens().logprobs());
    } else {
      outcome.finished = event->finished();
    }
  }
  outcome.status = reader_->Finish();
  return outcome;
}

grpc::Status Call::Finish() {
  return reader_->Finish();
}

v1::ErrorDetail DetailFrom(const grpc::Status& status) {
  v1::RpcStatus details;
  v1::ErrorDetail detail;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), status.error_code());
  EXPECT_EQ(details.message(), status.error_message());
  if (details.details_size() > 0) {
    EXPECT_TRUE(details.details(0).UnpackTo(&detail));
  }
  EXPECT_EQ(details.details_size(), detail.has_retry_after() ? 2 : 1) << status.error_message();
  return detail;
}

v1::GenerateRequest TextRequest(const std::string& text, const std::string& request_id) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.set_request_id(request_id);
  return request;
}

FrontendTest::FrontendTest() : image_(BuildTinyLlama(TinyLlamaOptions())) {
  file_ = *GgufFile::Parse(image_, "tiny.gguf");
  tokenizer_ = *Tokenizer::FromGguf(*file_);
  template_ = *ChatTemplate::Parse(*file_->GetString("tokenizer.chat_template"));
  options_.tokenizer = tokenizer_.get();
  options_.chat_template = template_.get();
  options_.model = *ReadHyperParameters(*file_);
  options_.fingerprint = "f1f2";
  options_.weight_bytes = 12345;
  options_.version = "1.2.3";
  options_.max_queued_requests = 1000;
  options_.max_running_requests = 200;
}

FrontendTest::~FrontendTest() {
  StopServer();
}

void FrontendTest::StopServer() {
  engine_.Release();
  if (frontend_ != nullptr) frontend_->Stop();
  if (server_ != nullptr) server_->Shutdown();
  server_.reset();
  frontend_.reset();
}

void FrontendTest::StartServer() {
  frontend_ = std::make_unique<Frontend>(options_);
  engine_.set_sink(frontend_->sink());
  frontend_->SetEngine(&engine_);
  frontend_->Start();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  frontend_->AddTo(&builder);
  server_ = builder.BuildAndStart();
  MILLRACE_CHECK(server_ != nullptr && port != 0);
  channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials());
  inference_ = v1::Inference::NewStub(channel_);
  control_ = v1::Control::NewStub(channel_);
}

std::unique_ptr<Call> FrontendTest::Submitted(const v1::GenerateRequest& request, SequenceId* id) {
  std::unique_ptr<Call> call = Generate(request);
  *id = engine_.NextSubmit().id;
  return call;
}

std::vector<std::string> FrontendTest::Abort(const std::vector<std::string>& ids, bool all) {
  v1::AbortRequest request;
  for (const std::string& id : ids) request.add_request_ids(id);
  request.set_all(all);
  v1::AbortResponse response;
  grpc::ClientContext context;
  EXPECT_TRUE(control_->Abort(&context, request, &response).ok());
  return {response.aborted_ids().begin(), response.aborted_ids().end()};
}

void FrontendTest::WaitForQueuedJobs(size_t jobs) {
  const absl::Time give_up = Clock::Steady().Now() + kPatience;
  while (Clock::Steady().Now() < give_up) {
    v1::GetLoadResponse load;
    grpc::ClientContext context;
    ASSERT_TRUE(control_->GetLoad(&context, v1::GetLoadRequest(), &load).ok());
    if (load.queued_requests() == jobs) return;
  }
  ADD_FAILURE() << "there were never " << jobs << " queued requests";
}

void FrontendTest::ExpectIdle() {
  EXPECT_TRUE(frontend_->WaitIdle(kPatience));
  EXPECT_EQ(frontend_->live_requests(), 0u);
}

}  // namespace millrace
