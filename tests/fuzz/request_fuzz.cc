// Any bytes as a Generate request: parsed, checked, tokenized, and its prompt taken as output that its stop
// strings may end.
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "coordinator/frontend/error_detail.h"
#include "coordinator/frontend/prompt_encoder.h"
#include "coordinator/frontend/request_validator.h"
#include "coordinator/frontend/rpc_message.h"
#include "coordinator/frontend/sequence_text.h"
#include "model/chat_template.h"
#include "model/gguf_file.h"
#include "model/tokenizer.h"
#include "model/utf8.h"
#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

struct Model {
  std::vector<uint8_t> image = BuildTinyLlama(TinyLlamaOptions());
  std::unique_ptr<GgufFile> file = *GgufFile::Parse(image, "tiny.gguf");
  std::unique_ptr<Tokenizer> tokenizer = *Tokenizer::FromGguf(*file);
  std::unique_ptr<ChatTemplate> chat_template =
      *ChatTemplate::Parse(*file->GetString("tokenizer.chat_template"));
};

RequestLimits Limits(const Model& model) {
  RequestLimits limits;
  limits.vocabulary_size = model.tokenizer->vocabulary_size();
  limits.context_tokens = 512;
  limits.has_chat_template = true;
  limits.max_input_bytes = 4096;
  limits.max_chat_messages = 16;
  return limits;
}

void CheckError(const absl::Status& error) {
  const grpc::Status status = ToGrpcStatus(error);
  MILLRACE_CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT ||
                 status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  MILLRACE_CHECK(!DetailOf(error).reason().empty() && !DetailOf(error).retryable());
  const std::string message = status.error_message();
  MILLRACE_CHECK(!message.empty() && ValidUtf8Prefix(message) == message.size());
  for (const unsigned char c : message) MILLRACE_CHECK(c >= ' ' && c != 0x7F);
}

// What the client would get if the model repeated the prompt.
void Stream(const Model& model, const CheckedRequest& request, const std::vector<TokenId>& ids) {
  SequenceTextOptions options;
  options.min_tokens = request.min_tokens;
  options.stop_strings = request.stop_strings;
  SequenceText sequence(model.tokenizer.get(), options);
  std::string text;
  uint32_t sent = 0;
  const auto take = [&](const v1::GenerateEvent& event) {
    text += event.tokens().text();
    sent += static_cast<uint32_t>(event.tokens().token_ids_size());
    MILLRACE_CHECK(ValidUtf8Prefix(event.tokens().text()) == event.tokens().text().size());
  };
  uint32_t generated = 0;
  for (const TokenId id : ids) {
    const absl::StatusOr<SequenceText::Step> step = sequence.OnToken({SequenceId(1), id, std::nullopt});
    MILLRACE_CHECK(step.ok());
    ++generated;
    if (step->event.has_value()) take(*step->event);
    if (step->stop_at.has_value())
      MILLRACE_CHECK(*step->stop_at == generated && generated >= request.min_tokens);
    if (sequence.matched()) break;
  }
  SequenceFinished finished;
  finished.output_tokens = generated;
  const std::vector<v1::GenerateEvent> last = sequence.OnFinished(finished);
  for (const v1::GenerateEvent& event : last) take(event);
  MILLRACE_CHECK(sent == generated && last.back().finished().usage().completion_tokens() == generated);
  if (sequence.matched() || request.min_tokens > 0) return;
  for (const std::string& stop : request.stop_strings) {
    // An incomplete character at the very end becomes U+FFFD, too late to stop anything.
    if (stop.find(std::string(kReplacementCharacter)) != std::string::npos) continue;
    MILLRACE_CHECK(text.find(stop) == std::string::npos);
  }
}

void Use(const Model& model, const RequestLimits& limits, CheckedRequest request) {
  const bool has_text = !std::holds_alternative<std::vector<TokenId>>(request.input.value);
  MILLRACE_CHECK(request.input.bytes() <= limits.max_input_bytes);
  absl::StatusOr<EncodedPrompt> prompt =
      PromptEncoder(model.tokenizer.get(), model.chat_template.get()).Encode(std::move(request.input));
  if (!prompt.ok()) return CheckError(prompt.status());
  for (const TokenId id : prompt->ids) MILLRACE_CHECK(id < limits.vocabulary_size);
  if (has_text) MILLRACE_CHECK(model.tokenizer->Decode(prompt->ids, /*skip_special=*/false) == prompt->text);
  const absl::Status fits = CheckPromptTokens(prompt->ids.size(), limits);
  if (!fits.ok()) return CheckError(fits);
  Stream(model, request, prompt->ids);
}

}  // namespace
}  // namespace millrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* const model = new millrace::Model;
  const millrace::RequestLimits limits = millrace::Limits(*model);
  const grpc::Slice slice(data, size);
  const auto message = millrace::ParseMessage<millrace::v1::GenerateRequest>(grpc::ByteBuffer(&slice, 1),
                                                                             limits.max_message_bytes());
  if (!message.ok()) {
    millrace::CheckError(message.status());
    return 0;
  }
  auto checked = millrace::CheckGenerateRequest(*message, limits);
  if (checked.ok()) {
    millrace::Use(*model, limits, *std::move(checked));
  } else {
    millrace::CheckError(checked.status());
  }
  return 0;
}
