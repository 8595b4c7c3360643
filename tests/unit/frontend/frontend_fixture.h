// A Frontend behind a real gRPC server on a free port, a scripted engine, and clients.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/server.h>
#include <grpcpp/support/sync_stream.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/frontend/frontend.h"
#include "gtest/gtest.h"
#include "millrace/v1/control.grpc.pb.h"
#include "millrace/v1/inference.grpc.pb.h"
#include "model/chat_template.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "model/tokenizer.h"
#include "tests/unit/frontend/fake_engine.h"

namespace millrace {

// Everything of a stream, in the order it came.
struct Outcome {
  std::optional<v1::Started> started;
  std::vector<v1::PromptLogprobs> prompt_logprobs;
  v1::TokenDelta tokens;           // all deltas as one
  std::vector<std::string> texts;  // of each delta
  std::optional<v1::Finished> finished;
  grpc::Status status;
};

// One Generate call.
class Call {
 public:
  Call(v1::Inference::Stub* stub, const v1::GenerateRequest& request,
       absl::Duration deadline = absl::InfiniteDuration());

  std::optional<v1::GenerateEvent> Next();  // waits
  v1::Started Started();                    // the next event, which must be this
  Outcome Rest();                           // reads to the end
  grpc::Status Finish();                    // without reading
  void Cancel() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader_;
};

v1::ErrorDetail DetailFrom(const grpc::Status& status);
v1::GenerateRequest TextRequest(const std::string& text, const std::string& request_id = "");

class FrontendTest : public testing::Test {
 protected:
  FrontendTest();
  ~FrontendTest() override;

  // The tests change options_ before.
  void StartServer();
  void StopServer();
  std::unique_ptr<Call> Generate(const v1::GenerateRequest& request,
                                 absl::Duration deadline = absl::InfiniteDuration()) {
    return std::make_unique<Call>(inference_.get(), request, deadline);
  }
  // Starts a call and waits until the engine has it.
  std::unique_ptr<Call> Submitted(const v1::GenerateRequest& request, SequenceId* id);
  std::vector<std::string> Abort(const std::vector<std::string>& ids, bool all = false);
  // Waits until so many requests wait for the text thread.
  void WaitForQueuedJobs(size_t jobs);
  // Nothing may be left of any request.
  void ExpectIdle();

  std::vector<uint8_t> image_;
  std::unique_ptr<GgufFile> file_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> template_;
  FakeEngine engine_;
  FrontendOptions options_;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Control::Stub> control_;
};

}  // namespace millrace
