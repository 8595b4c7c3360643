// Machine-readable reasons of errors, carried as payloads of absl::Status from where an error arises to the
// client.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace {

inline constexpr absl::string_view kReasonPayload = "millrace/reason";  // UPPER_SNAKE_CASE, at most 64 bytes
inline constexpr absl::string_view kRetryablePayload = "millrace/retryable";  // "true" or "false"

inline constexpr absl::string_view kRetryAfterPayload = "millrace/retry-after";  // milliseconds

inline absl::Status WithReason(absl::Status error, absl::string_view reason, bool retryable) {
  error.SetPayload(kReasonPayload, absl::Cord(reason));
  error.SetPayload(kRetryablePayload, absl::Cord(retryable ? "true" : "false"));
  return error;
}

// An error that the same request will meet again.
inline absl::Status Refusal(absl::StatusCode code, absl::string_view reason, absl::string_view message) {
  return WithReason(absl::Status(code, message), reason, false);
}

// An error that the same request may not meet later.
inline absl::Status RetryLater(absl::StatusCode code, absl::string_view reason, absl::string_view message) {
  return WithReason(absl::Status(code, message), reason, true);
}

// `pause`: to make before the retry; rounded up to milliseconds.
inline absl::Status RetryAfter(absl::Status error, absl::Duration pause) {
  error.SetPayload(
      kRetryAfterPayload,
      absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(absl::Ceil(pause, absl::Milliseconds(1))))));
  return error;
}

}  // namespace millrace
