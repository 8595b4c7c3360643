#include "coordinator/frontend/request_validator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/frontend/error_detail.h"
#include "coordinator/scheduler/microbatch_plan.h"

namespace millrace {
namespace {

template <typename... Args>
absl::Status Invalid(absl::string_view reason, const Args&... message) {
  return Refusal(absl::StatusCode::kInvalidArgument, reason, absl::StrCat(message...));
}

absl::Status CheckTokenId(absl::string_view where, uint32_t id, const RequestLimits& limits,
                          absl::string_view reason) {
  if (id < limits.vocabulary_size) return absl::OkStatus();
  return Invalid(reason, where, " is token ", id, "; the vocabulary has ", limits.vocabulary_size,
                 " tokens, so ids end at ", limits.vocabulary_size - 1);
}

// Written so that NaN fails.
absl::Status CheckBetween(absl::string_view name, float value, float low, float high,
                          absl::string_view reason) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Invalid(reason, name, " is ", value, "; it must lie in [", low, ", ", high, "]");
}

absl::Status CheckTokenIds(const google::protobuf::RepeatedField<uint32_t>& ids,
                           const RequestLimits& limits) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= limits.vocabulary_size) {
      return CheckTokenId(absl::StrCat("token_ids[", i, "]"), ids[i], limits, "TOKEN_OUT_OF_RANGE");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ChatTurn>> CheckChat(v1::Chat& chat, const RequestLimits& limits) {
  if (!limits.has_chat_template) {
    return Invalid("NO_CHAT_TEMPLATE", "the model file has no chat template; send text or token_ids");
  }
  if (chat.messages().empty()) return Invalid("EMPTY_PROMPT", "chat has no messages; send at least 1");
  const size_t count = static_cast<size_t>(chat.messages_size());
  if (count > limits.max_chat_messages) {
    return Invalid("TOO_MANY_MESSAGES", "chat has ", count, " messages; the limit is ",
                   limits.max_chat_messages);
  }
  size_t bytes = 0;
  for (const v1::ChatMessage& message : chat.messages())
    bytes += message.role().size() + message.content().size();
  RETURN_IF_ERROR(CheckSize("chat", bytes, limits.max_input_bytes));
  std::vector<ChatTurn> turns;
  turns.reserve(count);
  for (v1::ChatMessage& message : *chat.mutable_messages()) {
    const std::string& role = message.role();
    if (role != "system" && role != "user" && role != "assistant") {
      return Invalid("UNKNOWN_ROLE", "chat.messages[", turns.size(), "].role is ", Quoted(role),
                     "; it must be system, user or assistant");
    }
    turns.push_back({std::move(*message.mutable_role()), std::move(*message.mutable_content())});
  }
  return turns;
}

absl::StatusOr<std::vector<TokenId>> CheckPromptIds(const v1::TokenIds& ids, const RequestLimits& limits) {
  const size_t count = static_cast<size_t>(ids.ids_size());
  if (count == 0) return Invalid("EMPTY_PROMPT", "token_ids is empty; send at least 1");
  RETURN_IF_ERROR(CheckSize("token_ids", count * sizeof(TokenId), limits.max_input_bytes));
  RETURN_IF_ERROR(CheckPromptTokens(count, limits));
  RETURN_IF_ERROR(CheckTokenIds(ids.ids(), limits));
  return std::vector<TokenId>(ids.ids().begin(), ids.ids().end());
}

absl::StatusOr<PromptInput> CheckGenerateInput(v1::GenerateRequest& request, const RequestLimits& limits) {
  PromptInput input;
  input.parse_special = !request.has_parse_special() || request.parse_special();
  switch (request.input_case()) {
    case v1::GenerateRequest::kText:
      if (request.text().empty()) return Invalid("EMPTY_PROMPT", "text is empty; send at least 1 byte");
      RETURN_IF_ERROR(CheckSize("text", request.text().size(), limits.max_input_bytes));
      input.value = std::move(*request.mutable_text());
      return input;
    case v1::GenerateRequest::kTokenIds: {
      ASSIGN_OR_RETURN(input.value, CheckPromptIds(request.token_ids(), limits));
      return input;
    }
    case v1::GenerateRequest::kChat: {
      ASSIGN_OR_RETURN(input.value, CheckChat(*request.mutable_chat(), limits));
      return input;
    }
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return Invalid("NO_INPUT", "the request has no input; set one of text, token_ids and chat");
}

absl::Status CheckRequestId(const std::string& id) {
  if (id.size() > kMaxRequestIdBytes) {
    return Invalid("INVALID_REQUEST_ID", "request_id has ", id.size(), " bytes; the limit is ",
                   kMaxRequestIdBytes);
  }
  for (size_t i = 0; i < id.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(id[i]);
    // U+0080 .. U+009F are control characters, too: C2 80 .. C2 9F in UTF-8.
    const bool c1 = c == 0xC2 && i + 1 < id.size() && static_cast<unsigned char>(id[i + 1]) < 0xA0;
    if (c < 0x20 || c == 0x7F || c1) {
      return Invalid("INVALID_REQUEST_ID", "request_id has a control character at byte ", i,
                     "; use printable characters");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLogitBias(const v1::Sampling& sampling, const RequestLimits& limits, SamplingOptions& out) {
  if (sampling.logit_bias().size() > kMaxLogitBiases) {
    return Invalid("INVALID_LOGIT_BIAS", "sampling.logit_bias has ", sampling.logit_bias().size(),
                   " entries; the limit is ", kMaxLogitBiases);
  }
  for (const auto& [id, bias] : sampling.logit_bias()) {
    RETURN_IF_ERROR(CheckTokenId("a key of sampling.logit_bias", id, limits, "INVALID_LOGIT_BIAS"));
    RETURN_IF_ERROR(
        CheckBetween(absl::StrCat("sampling.logit_bias[", id, "]"), bias, -100, 100, "INVALID_LOGIT_BIAS"));
    out.logit_bias.emplace_back(id, bias);
  }
  // The order of a protobuf map differs from run to run.
  std::sort(out.logit_bias.begin(), out.logit_bias.end());
  return absl::OkStatus();
}

absl::Status CheckPenalties(const v1::Sampling& sampling, SamplingOptions& out) {
  if (sampling.has_repetition_penalty()) {
    out.repetition_penalty = sampling.repetition_penalty();
    if (!(out.repetition_penalty > 0) || !std::isfinite(out.repetition_penalty)) {
      return Invalid("INVALID_REPETITION_PENALTY", "sampling.repetition_penalty is ", out.repetition_penalty,
                     "; it must be finite and above 0");
    }
  }
  if (sampling.has_presence_penalty()) out.presence_penalty = sampling.presence_penalty();
  if (sampling.has_frequency_penalty()) out.frequency_penalty = sampling.frequency_penalty();
  RETURN_IF_ERROR(
      CheckBetween("sampling.presence_penalty", out.presence_penalty, -2, 2, "INVALID_PRESENCE_PENALTY"));
  return CheckBetween("sampling.frequency_penalty", out.frequency_penalty, -2, 2,
                      "INVALID_FREQUENCY_PENALTY");
}

absl::Status CheckSampling(const v1::Sampling& sampling, const RequestLimits& limits,
                           CheckedRequest& checked) {
  SamplingOptions& out = checked.sampling;
  if (sampling.has_temperature()) out.temperature = sampling.temperature();
  if (!(out.temperature >= 0) || !std::isfinite(out.temperature)) {
    return Invalid("INVALID_TEMPERATURE", "sampling.temperature is ", out.temperature,
                   "; it must be finite and at least 0");
  }
  if (sampling.has_top_k()) out.top_k = sampling.top_k();
  if (sampling.has_top_p()) out.top_p = sampling.top_p();
  if (!(out.top_p > 0 && out.top_p <= 1)) {
    return Invalid("INVALID_TOP_P", "sampling.top_p is ", out.top_p, "; it must lie in (0, 1]");
  }
  if (sampling.has_min_p()) out.min_p = sampling.min_p();
  RETURN_IF_ERROR(CheckBetween("sampling.min_p", out.min_p, 0, 1, "INVALID_MIN_P"));
  RETURN_IF_ERROR(CheckPenalties(sampling, out));
  RETURN_IF_ERROR(CheckLogitBias(sampling, limits, out));
  if (sampling.has_seed()) checked.seed = sampling.seed();
  return absl::OkStatus();
}

absl::Status CheckStopStrings(v1::Stop& stop, CheckedRequest& checked) {
  if (static_cast<size_t>(stop.strings_size()) > kMaxStopStrings) {
    return Invalid("INVALID_STOP_STRINGS", "stop.strings has ", stop.strings_size(),
                   " entries; the limit is ", kMaxStopStrings);
  }
  for (int i = 0; i < stop.strings_size(); ++i) {
    const size_t bytes = stop.strings(i).size();
    if (bytes == 0 || bytes > kMaxStopStringBytes) {
      return Invalid("INVALID_STOP_STRINGS", "stop.strings[", i, "] has ", bytes,
                     " bytes; it must have 1 to ", kMaxStopStringBytes);
    }
    checked.stop_strings.push_back(std::move(*stop.mutable_strings(i)));
  }
  return absl::OkStatus();
}

absl::Status CheckStop(v1::Stop& stop, const RequestLimits& limits, CheckedRequest& checked) {
  if (stop.has_max_tokens()) {
    if (stop.max_tokens() == 0) {
      return Invalid(
          "INVALID_MAX_TOKENS",
          "stop.max_tokens is 0; it must be at least 1 (leave it out for the rest of the context)");
    }
    checked.max_tokens = stop.max_tokens();
  }
  checked.min_tokens = stop.min_tokens();
  if (checked.max_tokens.has_value() && checked.min_tokens > *checked.max_tokens) {
    return Invalid("INVALID_MIN_TOKENS", "stop.min_tokens is ", checked.min_tokens,
                   "; it must be at most stop.max_tokens, which is ", *checked.max_tokens);
  }
  RETURN_IF_ERROR(CheckStopStrings(stop, checked));
  if (static_cast<size_t>(stop.token_ids_size()) > kMaxStopTokens) {
    return Invalid("INVALID_STOP_TOKENS", "stop.token_ids has ", stop.token_ids_size(),
                   " entries; the limit is ", kMaxStopTokens);
  }
  for (int i = 0; i < stop.token_ids_size(); ++i) {
    RETURN_IF_ERROR(CheckTokenId(absl::StrCat("stop.token_ids[", i, "]"), stop.token_ids(i), limits,
                                 "INVALID_STOP_TOKENS"));
  }
  checked.stop_token_ids.assign(stop.token_ids().begin(), stop.token_ids().end());
  checked.ignore_eos = stop.ignore_eos();
  return absl::OkStatus();
}

absl::Status CheckLogprobs(absl::string_view name, uint32_t alternatives, absl::string_view reason) {
  if (alternatives <= kMaxLogprobs) return absl::OkStatus();
  return Invalid(reason, name, " is ", alternatives, "; the limit is ", kMaxLogprobs);
}

}  // namespace

size_t PromptInput::bytes() const {
  if (const auto* text = std::get_if<std::string>(&value)) return text->size();
  if (const auto* ids = std::get_if<std::vector<TokenId>>(&value)) return ids->size() * sizeof(TokenId);
  size_t bytes = 0;
  for (const ChatTurn& turn : std::get<std::vector<ChatTurn>>(value))
    bytes += turn.role.size() + turn.content.size();
  return bytes;
}

absl::StatusOr<CheckedRequest> CheckGenerateRequest(v1::GenerateRequest request,
                                                    const RequestLimits& limits) {
  CheckedRequest checked;
  RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  checked.request_id = std::move(*request.mutable_request_id());
  ASSIGN_OR_RETURN(checked.input, CheckGenerateInput(request, limits));
  RETURN_IF_ERROR(CheckSampling(request.sampling(), limits, checked));
  RETURN_IF_ERROR(CheckStop(*request.mutable_stop(), limits, checked));
  if (request.has_logprobs()) {
    RETURN_IF_ERROR(CheckLogprobs("logprobs", request.logprobs(), "INVALID_LOGPROBS"));
    checked.sampling.logprobs = request.logprobs();
  }
  if (request.has_prompt_logprobs()) {
    RETURN_IF_ERROR(CheckLogprobs("prompt_logprobs", request.prompt_logprobs(), "INVALID_PROMPT_LOGPROBS"));
    checked.prompt_logprobs = request.prompt_logprobs();
  }
  if (request.priority() < -kMaxPriority || request.priority() > kMaxPriority) {
    return Invalid("INVALID_PRIORITY", "priority is ", request.priority(), "; it must lie in [",
                   -kMaxPriority, ", ", kMaxPriority, "]");
  }
  checked.priority = request.priority();
  if (request.cache_salt().size() > kMaxCacheSaltBytes) {
    return Invalid("INVALID_CACHE_SALT", "cache_salt has ", request.cache_salt().size(),
                   " bytes; the limit is ", kMaxCacheSaltBytes);
  }
  checked.cache_salt = std::move(*request.mutable_cache_salt());
  return checked;
}

absl::StatusOr<PromptInput> CheckTokenizeRequest(v1::TokenizeRequest request, const RequestLimits& limits) {
  PromptInput input;
  input.parse_special = !request.has_parse_special() || request.parse_special();
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      RETURN_IF_ERROR(CheckSize("text", request.text().size(), limits.max_input_bytes));
      input.value = std::move(*request.mutable_text());
      return input;
    case v1::TokenizeRequest::kChat: {
      ASSIGN_OR_RETURN(input.value, CheckChat(*request.mutable_chat(), limits));
      return input;
    }
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
  }
  return Invalid("NO_INPUT", "the request has no input; set one of text and chat");
}

absl::StatusOr<std::vector<TokenId>> CheckDetokenizeRequest(const v1::DetokenizeRequest& request,
                                                            const RequestLimits& limits) {
  RETURN_IF_ERROR(CheckSize("token_ids", static_cast<size_t>(request.token_ids_size()) * sizeof(TokenId),
                            limits.max_input_bytes));
  RETURN_IF_ERROR(CheckTokenIds(request.token_ids(), limits));
  return std::vector<TokenId>(request.token_ids().begin(), request.token_ids().end());
}

absl::Status CheckPromptTokens(size_t tokens, const RequestLimits& limits) {
  if (tokens == 0) return Invalid("EMPTY_PROMPT", "the prompt has no tokens; send at least 1");
  if (tokens < limits.context_tokens) return absl::OkStatus();
  return Invalid("PROMPT_TOO_LONG", "the prompt has ", tokens, " tokens; the context has ",
                 limits.context_tokens, " and at least 1 must be left, so shorten the prompt to ",
                 limits.context_tokens == 0 ? 0 : limits.context_tokens - 1, " tokens");
}

absl::Status CheckSize(absl::string_view what, size_t got, size_t limit) {
  if (got <= limit) return absl::OkStatus();
  return Refusal(absl::StatusCode::kResourceExhausted, "INPUT_TOO_LARGE",
                 absl::StrCat(what, " has ", got, " bytes; the limit is ", limit));
}

}  // namespace millrace
