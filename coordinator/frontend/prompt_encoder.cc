#include "coordinator/frontend/prompt_encoder.h"

#include <utility>
#include <variant>

#include "common/check.h"
#include "coordinator/frontend/error_detail.h"

namespace millrace {

absl::StatusOr<EncodedPrompt> PromptEncoder::Encode(PromptInput input) const {
  EncodedPrompt prompt;
  if (auto* ids = std::get_if<std::vector<TokenId>>(&input.value)) {
    prompt.ids = std::move(*ids);
    return prompt;
  }
  if (const auto* turns = std::get_if<std::vector<ChatTurn>>(&input.value)) return EncodeChat(*turns);
  prompt.text = std::move(std::get<std::string>(input.value));
  EncodeOptions options;
  options.parse_special = input.parse_special;
  prompt.ids = tokenizer_->Encode(prompt.text, options);
  return prompt;
}

absl::StatusOr<EncodedPrompt> PromptEncoder::EncodeChat(const std::vector<ChatTurn>& turns) const {
  MILLRACE_CHECK(chat_template_ != nullptr);
  ChatTemplateOptions render;
  render.bos_text = tokenizer_->bos_text();
  render.eos_text = tokenizer_->eos_text();
  absl::StatusOr<RenderedChat> chat = chat_template_->Render(turns, render);
  if (!chat.ok()) {
    const bool limit = absl::IsResourceExhausted(chat.status());
    return Refusal(limit ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInvalidArgument,
                   limit ? "CHAT_TEMPLATE_LIMIT" : "CHAT_TEMPLATE_FAILED", chat.status().message());
  }
  EncodeOptions options;
  options.literal_ranges = chat->literal_ranges;
  EncodedPrompt prompt;
  prompt.ids = tokenizer_->Encode(chat->text, options);
  prompt.text = std::move(chat->text);
  return prompt;
}

}  // namespace millrace
