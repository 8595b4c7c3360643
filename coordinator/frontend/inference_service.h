// The Inference service of inference.proto.
#pragma once

#include <atomic>
#include <memory>

#include "coordinator/frontend/generate_stream.h"
#include "coordinator/frontend/prompt_encoder.h"
#include "coordinator/frontend/request_registry.h"
#include "coordinator/frontend/request_validator.h"
#include "coordinator/frontend/text_worker.h"
#include "millrace/v1/inference.grpc.pb.h"
#include "model/tokenizer.h"

namespace millrace {

struct InferenceServiceOptions {
  const Tokenizer* tokenizer = nullptr;
  const PromptEncoder* encoder = nullptr;
  RequestRegistry* registry = nullptr;
  TextWorker* worker = nullptr;
  RequestLimits limits;
  GenerateStreamOptions stream;
};

using RawInference =
    v1::Inference::WithRawCallbackMethod_Generate<v1::Inference::WithRawCallbackMethod_Tokenize<
        v1::Inference::WithRawCallbackMethod_Detokenize<v1::Inference::Service>>>;

// Thread: gRPC's, any number at once. Checks what arrives and hands it to the text thread; small Tokenize and
// Detokenize calls are answered here.
class InferenceService final : public RawInference {
 public:
  explicit InferenceService(const InferenceServiceOptions& options) : options_(options) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  absl::Status Accept(const std::shared_ptr<GenerateStream>& stream, const grpc::ByteBuffer& request);
  absl::StatusOr<v1::TokenizeResponse> TokenizeNow(PromptInput input) const;
  absl::StatusOr<v1::DetokenizeResponse> DetokenizeNow(const std::vector<TokenId>& ids,
                                                       bool skip_special) const;
  void RunOrQueue(size_t input_bytes, UnaryJob job);

  const InferenceServiceOptions options_;
  std::atomic<uint64_t> last_sequence_{0};
};

}  // namespace millrace
