// What a client sent as text, chat or ids, turned into the token ids of a prompt.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "coordinator/frontend/request_validator.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace millrace {

struct EncodedPrompt {
  std::vector<TokenId> ids;
  std::string text;  // what was tokenized; empty if the input was ids
};

// Immutable. Thread: any. Time: O(n log n) in the bytes of the input; the chat template has a limit of its
// own.
class PromptEncoder {
 public:
  // `chat_template` is null if the model has none. Both outlive this.
  PromptEncoder(const Tokenizer* tokenizer, const ChatTemplate* chat_template)
      : tokenizer_(tokenizer), chat_template_(chat_template) {}

  // INVALID_ARGUMENT CHAT_TEMPLATE_FAILED: the template refused the messages. RESOURCE_EXHAUSTED
  // CHAT_TEMPLATE_LIMIT: it took too many steps or made too much text. REQUIRES: `input` was checked; chat
  // only with a template.
  absl::StatusOr<EncodedPrompt> Encode(PromptInput input) const;

 private:
  absl::StatusOr<EncodedPrompt> EncodeChat(const std::vector<ChatTurn>& turns) const;

  const Tokenizer* const tokenizer_;
  const ChatTemplate* const chat_template_;
};

}  // namespace millrace
