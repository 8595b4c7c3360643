#include "coordinator/frontend/inference_service.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/frontend/error_detail.h"
#include "coordinator/frontend/random_bits.h"
#include "coordinator/frontend/rpc_message.h"
#include "model/utf8.h"

namespace millrace {
namespace {

// Up to here a unary call costs less than handing it to another thread is worth.
constexpr size_t kInlineBytes = 4 << 10;
// Of what Detokenize makes: ids are 4 bytes, but a token may be long.
constexpr size_t kMaxDetokenizedBytes = size_t{16} << 20;

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                                       const grpc::ByteBuffer* request) {
  const SequenceId id(last_sequence_.fetch_add(1, std::memory_order_relaxed) + 1);
  TextWorker* const worker = options_.worker;
  std::shared_ptr<GenerateStream> stream =
      GenerateStream::Create(id, context, options_.registry, options_.stream,
                             [worker](SequenceId ended) { worker->PushEndRequest(ended); });
  const absl::Status accepted = Accept(stream, *request);
  if (!accepted.ok()) stream->End(accepted);
  return stream.get();
}

absl::Status InferenceService::Accept(const std::shared_ptr<GenerateStream>& stream,
                                      const grpc::ByteBuffer& request) {
  ASSIGN_OR_RETURN(v1::GenerateRequest message,
                   ParseMessage<v1::GenerateRequest>(request, options_.limits.max_message_bytes()));
  ASSIGN_OR_RETURN(CheckedRequest checked, CheckGenerateRequest(std::move(message), options_.limits));
  stream->set_request_id(checked.request_id.empty()
                             ? absl::StrCat("req-", absl::Hex(RandomBits(), absl::kZeroPad16))
                             : std::move(checked.request_id));
  RETURN_IF_ERROR(options_.registry->Register(stream->request_id(), stream));
  const size_t bytes = checked.input.bytes();
  const absl::Status queued = options_.worker->PushJob(
      {GenerateJob{stream, std::move(checked), options_.stream.clock->Now()}, bytes});
  if (!queued.ok()) options_.registry->Remove(stream->request_id());
  return queued;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  absl::StatusOr<v1::TokenizeRequest> message =
      ParseMessage<v1::TokenizeRequest>(*request, options_.limits.max_message_bytes());
  absl::StatusOr<PromptInput> input =
      message.ok() ? CheckTokenizeRequest(*std::move(message), options_.limits) : message.status();
  const size_t bytes = input.ok() ? input->bytes() : 0;
  RunOrQueue(bytes, [this, input = std::move(input), response, reactor](const absl::Status& state) mutable {
    if (!state.ok()) return Answer<v1::TokenizeResponse>(state, response, reactor);
    if (!input.ok()) return Answer<v1::TokenizeResponse>(input.status(), response, reactor);
    Answer(TokenizeNow(*std::move(input)), response, reactor);
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  absl::StatusOr<v1::DetokenizeRequest> message =
      ParseMessage<v1::DetokenizeRequest>(*request, options_.limits.max_message_bytes());
  absl::StatusOr<std::vector<TokenId>> ids =
      message.ok() ? CheckDetokenizeRequest(*message, options_.limits) : message.status();
  const bool skip_special = message.ok() && message->skip_special();
  const size_t bytes = ids.ok() ? ids->size() * sizeof(TokenId) : 0;
  RunOrQueue(bytes, [this, ids = std::move(ids), skip_special, response, reactor](const absl::Status& state) {
    if (!state.ok()) return Answer<v1::DetokenizeResponse>(state, response, reactor);
    if (!ids.ok()) return Answer<v1::DetokenizeResponse>(ids.status(), response, reactor);
    Answer(DetokenizeNow(*ids, skip_special), response, reactor);
  });
  return reactor;
}

absl::StatusOr<v1::TokenizeResponse> InferenceService::TokenizeNow(PromptInput input) const {
  ASSIGN_OR_RETURN(EncodedPrompt prompt, options_.encoder->Encode(std::move(input)));
  v1::TokenizeResponse response;
  response.mutable_token_ids()->Add(prompt.ids.begin(), prompt.ids.end());
  for (TokenId id : prompt.ids) response.add_tokens(options_.tokenizer->TokenBytes(id));
  response.set_text(std::move(prompt.text));
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> InferenceService::DetokenizeNow(const std::vector<TokenId>& ids,
                                                                       bool skip_special) const {
  size_t bytes = 0;
  for (TokenId id : ids) bytes += options_.tokenizer->TokenBytes(id).size();
  RETURN_IF_ERROR(CheckSize("the text of token_ids", bytes, kMaxDetokenizedBytes));
  v1::DetokenizeResponse response;
  response.set_data(options_.tokenizer->Decode(ids, skip_special));
  response.set_text(ReplaceInvalidUtf8(response.data()));
  return response;
}

void InferenceService::RunOrQueue(size_t input_bytes, UnaryJob job) {
  if (input_bytes <= kInlineBytes) return job(absl::OkStatus());
  TextJob queued{std::move(job), input_bytes};
  const absl::Status pushed = options_.worker->PushJob(std::move(queued));
  if (!pushed.ok()) std::get<UnaryJob>(queued.work)(pushed);
}

}  // namespace millrace
