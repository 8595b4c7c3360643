#include "coordinator/frontend/request_validator.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "coordinator/frontend/error_detail.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

RequestLimits Limits() {
  RequestLimits limits;
  limits.vocabulary_size = 100;
  limits.context_tokens = 10;
  limits.has_chat_template = true;
  limits.max_input_bytes = 1000;
  limits.max_chat_messages = 3;
  return limits;
}

struct Row {
  std::string name;
  std::function<void(v1::GenerateRequest&)> change;  // of a request that is right
  std::string reason;                                // empty: still right
  std::string words;                                 // in the message
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

void AddMessage(v1::GenerateRequest& request, const std::string& role, const std::string& content) {
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role(role);
  message->set_content(content);
}

void AddIds(v1::GenerateRequest& request, int count, uint32_t id) {
  for (int i = 0; i < count; ++i) request.mutable_token_ids()->add_ids(id);
}

void AddStops(v1::GenerateRequest& request, int count, const std::string& text) {
  for (int i = 0; i < count; ++i) request.mutable_stop()->add_strings(text);
}

Row Sampling(const std::string& name, float value, const std::string& reason, const std::string& words) {
  const auto change = [name, value](v1::GenerateRequest& r) {
    v1::Sampling* sampling = r.mutable_sampling();
    const auto* field = v1::Sampling::descriptor()->FindFieldByName(name);
    v1::Sampling::GetReflection()->SetFloat(sampling, field, value);
  };
  return {absl::StrCat(name, " ", value), change, reason, words};
}

Row Bias(uint32_t id, float value, const std::string& reason, const std::string& words) {
  return {absl::StrCat("bias ", id, " ", value),
          [=](v1::GenerateRequest& r) { (*r.mutable_sampling()->mutable_logit_bias())[id] = value; }, reason,
          words};
}

Row RequestId(const std::string& id, const std::string& reason, const std::string& words) {
  return {"request_id " + id, [=](v1::GenerateRequest& r) { r.set_request_id(id); }, reason, words};
}

std::vector<Row> InputRows() {
  const auto exhausted = absl::StatusCode::kResourceExhausted;
  return {
      {"nothing changed", [](v1::GenerateRequest&) {}, "", ""},
      {"no input", [](v1::GenerateRequest& r) { r.clear_input(); }, "NO_INPUT", "text, token_ids and chat"},
      {"empty text", [](v1::GenerateRequest& r) { r.set_text(""); }, "EMPTY_PROMPT", "text is empty"},
      {"text at the limit", [](v1::GenerateRequest& r) { r.set_text(std::string(1000, 'x')); }, "", ""},
      {"text past the limit", [](v1::GenerateRequest& r) { r.set_text(std::string(1001, 'x')); },
       "INPUT_TOO_LARGE", "text has 1001 bytes; the limit is 1000", exhausted},
      {"no ids", [](v1::GenerateRequest& r) { r.mutable_token_ids(); }, "EMPTY_PROMPT", "token_ids is empty"},
      {"ids that leave room for one", [](v1::GenerateRequest& r) { AddIds(r, 9, 99); }, "", ""},
      {"ids that fill the context", [](v1::GenerateRequest& r) { AddIds(r, 10, 99); }, "PROMPT_TOO_LONG",
       "has 10 tokens; the context has 10"},
      {"an id past the vocabulary", [](v1::GenerateRequest& r) { AddIds(r, 2, 100); }, "TOKEN_OUT_OF_RANGE",
       "token_ids[0] is token 100; the vocabulary has 100"},
      {"ids past the bytes", [](v1::GenerateRequest& r) { AddIds(r, 251, 1); }, "INPUT_TOO_LARGE",
       "token_ids has 1004 bytes; the limit is 1000", exhausted},
      {"no messages", [](v1::GenerateRequest& r) { r.mutable_chat(); }, "EMPTY_PROMPT",
       "chat has no messages"},
      {"every role",
       [](v1::GenerateRequest& r) {
         AddMessage(r, "system", "");
         AddMessage(r, "user", "x");
         AddMessage(r, "assistant", "y");
       },
       "", ""},
      {"an unknown role",
       [](v1::GenerateRequest& r) {
         AddMessage(r, "user", "x");
         AddMessage(r, "ro\not", "x");
       },
       "UNKNOWN_ROLE", "chat.messages[1].role is \"ro\\not\""},
      {"an empty role", [](v1::GenerateRequest& r) { AddMessage(r, "", "x"); }, "UNKNOWN_ROLE",
       "role is \"\""},
      {"a long role", [](v1::GenerateRequest& r) { AddMessage(r, std::string(900, 'r'), "x"); },
       "UNKNOWN_ROLE", "rrr\"..."},
      {"too many messages",
       [](v1::GenerateRequest& r) {
         for (int i = 0; i < 4; ++i) AddMessage(r, "user", "x");
       },
       "TOO_MANY_MESSAGES", "chat has 4 messages; the limit is 3"},
      {"a chat past the bytes", [](v1::GenerateRequest& r) { AddMessage(r, "user", std::string(997, 'x')); },
       "INPUT_TOO_LARGE", "chat has 1001 bytes; the limit is 1000", exhausted},
      RequestId(std::string(128, 'i'), "", ""),
      RequestId(std::string(129, 'i'), "INVALID_REQUEST_ID", "129 bytes; the limit is 128"),
      RequestId("a\nb", "INVALID_REQUEST_ID", "byte 1"),
      RequestId("ab\x7F", "INVALID_REQUEST_ID", "byte 2"),
      RequestId("a\xC2\x85", "INVALID_REQUEST_ID", "byte 1"),
      RequestId("gr\xC3\xBC\xC3\x9F \xC2\xA0", "", ""),
  };
}

std::vector<Row> SamplingRows() {
  std::vector<Row> rows = {
      Sampling("temperature", 0, "", ""),
      Sampling("temperature", 1e30f, "", ""),
      Sampling("temperature", -0.01f, "INVALID_TEMPERATURE",
               "temperature is -0.01; it must be finite and at least 0"),
      Sampling("temperature", kNan, "INVALID_TEMPERATURE", "temperature is nan"),
      Sampling("temperature", kInf, "INVALID_TEMPERATURE", "temperature is inf"),
      Sampling("temperature", -kInf, "INVALID_TEMPERATURE", "temperature is -inf"),
      Sampling("top_p", 1, "", ""),
      Sampling("top_p", 1e-9f, "", ""),
      Sampling("top_p", 0, "INVALID_TOP_P", "top_p is 0; it must lie in (0, 1]"),
      Sampling("top_p", 1.01f, "INVALID_TOP_P", "top_p is 1.01"),
      Sampling("top_p", -1, "INVALID_TOP_P", "top_p is -1"),
      Sampling("top_p", kNan, "INVALID_TOP_P", "top_p is nan"),
      Sampling("min_p", 0, "", ""),
      Sampling("min_p", 1, "", ""),
      Sampling("min_p", -0.5f, "INVALID_MIN_P", "min_p is -0.5; it must lie in [0, 1]"),
      Sampling("min_p", 1.5f, "INVALID_MIN_P", "min_p is 1.5"),
      Sampling("min_p", kNan, "INVALID_MIN_P", "min_p is nan"),
      Sampling("repetition_penalty", 0.01f, "", ""),
      Sampling("repetition_penalty", 0, "INVALID_REPETITION_PENALTY",
               "repetition_penalty is 0; it must be finite"),
      Sampling("repetition_penalty", -1, "INVALID_REPETITION_PENALTY", "repetition_penalty is -1"),
      Sampling("repetition_penalty", kNan, "INVALID_REPETITION_PENALTY", "repetition_penalty is nan"),
      Sampling("repetition_penalty", kInf, "INVALID_REPETITION_PENALTY", "repetition_penalty is inf"),
  };
  for (const char* which : {"presence", "frequency"}) {
    const std::string name = absl::StrCat(which, "_penalty");
    const std::string reason = *which == 'p' ? "INVALID_PRESENCE_PENALTY" : "INVALID_FREQUENCY_PENALTY";
    rows.push_back(Sampling(name, -2, "", ""));
    rows.push_back(Sampling(name, 2, "", ""));
    rows.push_back(Sampling(name, -2.01f, reason, name + " is -2.01; it must lie in [-2, 2]"));
    rows.push_back(Sampling(name, 2.01f, reason, name + " is 2.01"));
    rows.push_back(Sampling(name, kNan, reason, name + " is nan"));
  }
  rows.push_back(Bias(99, 100, "", ""));
  rows.push_back(Bias(0, -100, "", ""));
  rows.push_back(Bias(100, 0, "INVALID_LOGIT_BIAS", "is token 100; the vocabulary has 100"));
  rows.push_back(Bias(5, 100.5f, "INVALID_LOGIT_BIAS", "logit_bias[5] is 100.5; it must lie in [-100, 100]"));
  rows.push_back(Bias(5, -101, "INVALID_LOGIT_BIAS", "logit_bias[5] is -101"));
  rows.push_back(Bias(5, kNan, "INVALID_LOGIT_BIAS", "logit_bias[5] is nan"));
  rows.push_back(Bias(5, -kInf, "INVALID_LOGIT_BIAS", "logit_bias[5] is -inf"));
  rows.push_back({"1025 biases",
                  [](v1::GenerateRequest& r) {
                    for (uint32_t i = 0; i < 1025; ++i) (*r.mutable_sampling()->mutable_logit_bias())[i] = 0;
                  },
                  "INVALID_LOGIT_BIAS", "1025 entries; the limit is 1024"});
  return rows;
}

std::vector<Row> StopRows() {
  return {
      {"max_tokens 0", [](v1::GenerateRequest& r) { r.mutable_stop()->set_max_tokens(0); },
       "INVALID_MAX_TOKENS", "max_tokens is 0; it must be at least 1"},
      {"min_tokens at max_tokens",
       [](v1::GenerateRequest& r) {
         r.mutable_stop()->set_max_tokens(4);
         r.mutable_stop()->set_min_tokens(4);
       },
       "", ""},
      {"min_tokens past max_tokens",
       [](v1::GenerateRequest& r) {
         r.mutable_stop()->set_max_tokens(4);
         r.mutable_stop()->set_min_tokens(5);
       },
       "INVALID_MIN_TOKENS", "min_tokens is 5; it must be at most stop.max_tokens, which is 4"},
      {"64 stop strings", [](v1::GenerateRequest& r) { AddStops(r, 64, "x"); }, "", ""},
      {"65 stop strings", [](v1::GenerateRequest& r) { AddStops(r, 65, "x"); }, "INVALID_STOP_STRINGS",
       "65 entries; the limit is 64"},
      {"1000 stop strings", [](v1::GenerateRequest& r) { AddStops(r, 1000, "x"); }, "INVALID_STOP_STRINGS",
       "1000 entries"},
      {"an empty stop string",
       [](v1::GenerateRequest& r) {
         AddStops(r, 1, "x");
         AddStops(r, 1, "");
       },
       "INVALID_STOP_STRINGS", "strings[1] has 0 bytes; it must have 1 to 256"},
      {"a stop string of 256 bytes", [](v1::GenerateRequest& r) { AddStops(r, 1, std::string(256, 'x')); },
       "", ""},
      {"a stop string of 257 bytes", [](v1::GenerateRequest& r) { AddStops(r, 1, std::string(257, 'x')); },
       "INVALID_STOP_STRINGS", "strings[0] has 257 bytes"},
      {"64 stop ids", [](v1::GenerateRequest& r) { r.mutable_stop()->mutable_token_ids()->Resize(64, 1); },
       "", ""},
      {"65 stop ids", [](v1::GenerateRequest& r) { r.mutable_stop()->mutable_token_ids()->Resize(65, 1); },
       "INVALID_STOP_TOKENS", "65 entries; the limit is 64"},
      {"a stop id past the vocabulary", [](v1::GenerateRequest& r) { r.mutable_stop()->add_token_ids(100); },
       "INVALID_STOP_TOKENS", "stop.token_ids[0] is token 100"},
      {"32 logprobs", [](v1::GenerateRequest& r) { r.set_logprobs(32); }, "", ""},
      {"33 logprobs", [](v1::GenerateRequest& r) { r.set_logprobs(33); }, "INVALID_LOGPROBS",
       "logprobs is 33; the limit is 32"},
      {"33 prompt_logprobs", [](v1::GenerateRequest& r) { r.set_prompt_logprobs(33); },
       "INVALID_PROMPT_LOGPROBS", "prompt_logprobs is 33; the limit is 32"},
      {"a salt of 128 bytes", [](v1::GenerateRequest& r) { r.set_cache_salt(std::string(128, 's')); }, "",
       ""},
      {"a salt of 129 bytes", [](v1::GenerateRequest& r) { r.set_cache_salt(std::string(129, 's')); },
       "INVALID_CACHE_SALT", "cache_salt has 129 bytes; the limit is 128"},
      {"priority 100", [](v1::GenerateRequest& r) { r.set_priority(100); }, "", ""},
      {"priority 101", [](v1::GenerateRequest& r) { r.set_priority(101); }, "INVALID_PRIORITY",
       "priority is 101; it must lie in [-100, 100]"},
      {"priority -101", [](v1::GenerateRequest& r) { r.set_priority(-101); }, "INVALID_PRIORITY",
       "priority is -101"},
  };
}

void CheckRows(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    v1::GenerateRequest request;
    request.set_text("hello");
    row.change(request);
    const absl::StatusOr<CheckedRequest> checked = CheckGenerateRequest(request, Limits());
    if (row.reason.empty()) {
      EXPECT_TRUE(checked.ok()) << checked.status();
      continue;
    }
    EXPECT_EQ(checked.status().code(), row.code);
    EXPECT_EQ(DetailOf(checked.status()).reason(), row.reason);
    EXPECT_FALSE(DetailOf(checked.status()).retryable());
    EXPECT_THAT(std::string(checked.status().message()), HasSubstr(row.words));
  }
}

TEST(RequestValidatorTest, ChecksInputs) {
  CheckRows(InputRows());
}
TEST(RequestValidatorTest, ChecksSampling) {
  CheckRows(SamplingRows());
}
TEST(RequestValidatorTest, ChecksStopConditionsAndLogprobs) {
  CheckRows(StopRows());
}

TEST(RequestValidatorTest, RefusesChatWithoutATemplate) {
  RequestLimits limits = Limits();
  limits.has_chat_template = false;
  v1::GenerateRequest request;
  AddMessage(request, "user", "x");
  EXPECT_EQ(DetailOf(CheckGenerateRequest(request, limits).status()).reason(), "NO_CHAT_TEMPLATE");
}

TEST(RequestValidatorTest, SortsBiasesSoThatARequestIsAlwaysTheSame) {
  v1::GenerateRequest request;
  request.set_text("x");
  for (uint32_t i = 0; i < 100; ++i) (*request.mutable_sampling()->mutable_logit_bias())[(i * 37) % 100] = 1;
  const absl::StatusOr<CheckedRequest> checked = CheckGenerateRequest(request, Limits());
  ASSERT_TRUE(checked.ok());
  ASSERT_EQ(checked->sampling.logit_bias.size(), 100u);
  for (uint32_t i = 0; i < 100; ++i) EXPECT_EQ(checked->sampling.logit_bias[i].first, i);
}

TEST(RequestValidatorTest, EmptyTextMayBeTokenized) {
  v1::TokenizeRequest request;
  request.set_text("");
  EXPECT_TRUE(CheckTokenizeRequest(request, Limits()).ok());
  EXPECT_EQ(DetailOf(CheckTokenizeRequest(v1::TokenizeRequest(), Limits()).status()).reason(), "NO_INPUT");
}

TEST(RequestValidatorTest, WholeMessagesWithinTheLimitsFit) {
  RequestLimits limits;
  limits.vocabulary_size = 1u << 31;
  limits.context_tokens = 1u << 31;
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Resize(static_cast<int>(limits.max_input_bytes / 4),
                                                     (1u << 31) - 1);
  AddStops(request, 64, std::string(256, 'x'));
  for (uint32_t i = 0; i < 1024; ++i) (*request.mutable_sampling()->mutable_logit_bias())[(1u << 30) + i] = 1;
  EXPECT_TRUE(CheckGenerateRequest(request, limits).ok());
  EXPECT_LT(request.ByteSizeLong(), limits.max_message_bytes());
}

}  // namespace
}  // namespace millrace
