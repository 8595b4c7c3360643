// Requests as clients send them turned into checked values. Pure: no threads, no I/O, no model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/generation.h"
#include "common/ids.h"
#include "millrace/v1/inference.pb.h"
#include "model/chat_template.h"

namespace millrace {

struct RequestLimits {
  uint32_t vocabulary_size = 0;
  uint32_t context_tokens = 0;
  bool has_chat_template = false;
  // Of text; of roles and contents together; 4 for each token id.
  size_t max_input_bytes = size_t{1} << 20;
  size_t max_chat_messages = 4096;

  // Of a whole serialised request: nothing larger can be within the other limits. Checked before it is
  // parsed.
  size_t max_message_bytes() const { return 4 * max_input_bytes + (size_t{256} << 10); }
};

inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr size_t kMaxCacheSaltBytes = 128;
inline constexpr size_t kMaxLogitBiases = 1024;
inline constexpr size_t kMaxStopStrings = 64;
inline constexpr size_t kMaxStopStringBytes = 256;
inline constexpr size_t kMaxStopTokens = 64;

// What is to be tokenized.
struct PromptInput {
  std::variant<std::string, std::vector<TokenId>, std::vector<ChatTurn>> value;
  bool parse_special = true;  // of text

  size_t bytes() const;  // as RequestLimits::max_input_bytes counts them
};

// A GenerateRequest that is right as far as can be told without the tokenizer.
struct CheckedRequest {
  std::string request_id;  // empty: the server is to choose
  PromptInput input;
  SamplingOptions sampling;  // but for the seed
  std::optional<uint64_t> seed;
  std::optional<uint32_t> max_tokens;
  uint32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::string> stop_strings;
  std::vector<TokenId> stop_token_ids;
  std::optional<uint32_t> prompt_logprobs;
  int32_t priority = 0;
  std::string cache_salt;
};

// Errors, each with a reason (error_detail.h):
//   INVALID_ARGUMENT    NO_INPUT, EMPTY_PROMPT, PROMPT_TOO_LONG (token ids), TOKEN_OUT_OF_RANGE,
//   UNKNOWN_ROLE,
//                       TOO_MANY_MESSAGES, NO_CHAT_TEMPLATE, INVALID_REQUEST_ID, INVALID_TEMPERATURE,
//                       INVALID_TOP_P, INVALID_MIN_P, INVALID_REPETITION_PENALTY, INVALID_PRESENCE_PENALTY,
//                       INVALID_FREQUENCY_PENALTY, INVALID_LOGIT_BIAS, INVALID_MAX_TOKENS,
//                       INVALID_MIN_TOKENS, INVALID_STOP_STRINGS, INVALID_STOP_TOKENS, INVALID_LOGPROBS,
//                       INVALID_PROMPT_LOGPROBS, INVALID_PRIORITY, INVALID_CACHE_SALT
//   RESOURCE_EXHAUSTED  INPUT_TOO_LARGE
absl::StatusOr<CheckedRequest> CheckGenerateRequest(v1::GenerateRequest request, const RequestLimits& limits);

// As above, for the reasons that concern the input; empty text is text like any other.
absl::StatusOr<PromptInput> CheckTokenizeRequest(v1::TokenizeRequest request, const RequestLimits& limits);

// INVALID_ARGUMENT TOKEN_OUT_OF_RANGE, RESOURCE_EXHAUSTED INPUT_TOO_LARGE.
absl::StatusOr<std::vector<TokenId>> CheckDetokenizeRequest(const v1::DetokenizeRequest& request,
                                                            const RequestLimits& limits);

// INVALID_ARGUMENT PROMPT_TOO_LONG unless a prompt of so many tokens leaves room for one more; EMPTY_PROMPT
// for none.
absl::Status CheckPromptTokens(size_t tokens, const RequestLimits& limits);

// RESOURCE_EXHAUSTED INPUT_TOO_LARGE if `got` exceeds `limit`; `what` begins the message.
absl::Status CheckSize(absl::string_view what, size_t got, size_t limit);

}  // namespace millrace
