// How errors leave the server: an absl::Status with a machine-readable reason becomes a gRPC status whose
// details carry an ErrorDetail.
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/error_reason.h"
#include "millrace/v1/inference.pb.h"

namespace millrace {

// Reason, retryable and, if known, retry_after of an error: the payloads of common/error_reason.h, or what
// follows from the code. Then UNAVAILABLE, RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED may be retried.
v1::ErrorDetail DetailOf(const absl::Status& error);

// The status as the client gets it. Codes that no RPC documents become INTERNAL. The message is made one line
// of at most 1 KiB, so that it and its details fit into the 8 KiB of trailers that clients accept.
grpc::Status ToGrpcStatus(const absl::Status& status);

// `text` from outside made fit for a message: escaped, at most 64 bytes of it.
std::string Quoted(absl::string_view text);

}  // namespace millrace
