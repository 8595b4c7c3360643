#include "coordinator/frontend/error_detail.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "coordinator/frontend/proto_time.h"
#include "millrace/v1/rpc_status.pb.h"
#include "model/utf8.h"

namespace millrace {
namespace {

constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxReasonBytes = 64;
constexpr size_t kMaxQuotedBytes = 64;

// The documented codes keep their meaning; anything else that reaches a client is a defect of ours.
absl::StatusCode PublicCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kCancelled:
      return code;
    default:
      return absl::StatusCode::kInternal;
  }
}

bool RetryableByCode(absl::StatusCode code) {
  return code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kResourceExhausted ||
         code == absl::StatusCode::kDeadlineExceeded;
}

std::string ReasonByCode(absl::StatusCode code) {
  return code == absl::StatusCode::kUnavailable ? "PIPELINE_UNAVAILABLE"
                                                : absl::StatusCodeToString(PublicCode(code));
}

std::string OneLine(absl::string_view message) {
  std::string line = ReplaceInvalidUtf8(message);
  if (line.size() > kMaxMessageBytes)
    line.resize(ValidUtf8Prefix(absl::string_view(line).substr(0, kMaxMessageBytes)));
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, ' ');
  return line;
}

}  // namespace

v1::ErrorDetail DetailOf(const absl::Status& error) {
  v1::ErrorDetail detail;
  const absl::optional<absl::Cord> reason = error.GetPayload(kReasonPayload);
  detail.set_reason(reason.has_value() ? std::string(reason->Subcord(0, kMaxReasonBytes))
                                       : ReasonByCode(error.code()));
  const absl::optional<absl::Cord> retryable = error.GetPayload(kRetryablePayload);
  const absl::optional<absl::Cord> retry_after = error.GetPayload(kRetryAfterPayload);
  int64_t millis = 0;
  if (retry_after.has_value() && absl::SimpleAtoi(std::string(*retry_after), &millis)) {
    SetDuration(absl::Milliseconds(millis), detail.mutable_retry_after());
  }
  detail.set_retryable(retryable.has_value() ? *retryable == "true" : RetryableByCode(error.code()));
  return detail;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::StatusCode code = PublicCode(status.code());
  const std::string message = OneLine(
      code == status.code() ? std::string(status.message())
                            : absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message()));
  v1::RpcStatus details;
  details.set_code(static_cast<int>(code));
  details.set_message(message);
  const v1::ErrorDetail detail = DetailOf(status);
  details.add_details()->PackFrom(detail);
  if (detail.has_retry_after()) {
    v1::RpcRetryInfo info;
    *info.mutable_retry_delay() = detail.retry_after();
    details.add_details()->set_type_url("type.googleapis.com/google.rpc.RetryInfo");
    details.mutable_details(1)->set_value(info.SerializeAsString());
  }
  return grpc::Status(static_cast<grpc::StatusCode>(code), message, details.SerializeAsString());
}

std::string Quoted(absl::string_view text) {
  const bool cut = text.size() > kMaxQuotedBytes;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxQuotedBytes)), cut ? "\"..." : "\"");
}

}  // namespace millrace
