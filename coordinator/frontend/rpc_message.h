// Protobuf messages to and from the raw bytes of a call. The services take raw bytes so that a request's size
// is checked before it is parsed, and so that one that cannot be parsed gets a status with a reason.
#pragma once

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>
#include <grpcpp/support/server_callback.h>

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "coordinator/frontend/error_detail.h"
#include "coordinator/frontend/request_validator.h"

namespace millrace {

// RESOURCE_EXHAUSTED INPUT_TOO_LARGE; INVALID_ARGUMENT MALFORMED_REQUEST (a string that is not UTF-8 among
// it).
template <typename Message>
absl::StatusOr<Message> ParseMessage(const grpc::ByteBuffer& bytes, size_t max_bytes) {
  RETURN_IF_ERROR(CheckSize("the request", bytes.Length(), max_bytes));
  grpc::ByteBuffer copy(bytes);  // shares the slices; reading wants to change it
  grpc::ProtoBufferReader reader(&copy);
  Message message;
  if (!reader.status().ok() || !message.ParseFromZeroCopyStream(&reader)) {
    return Refusal(absl::StatusCode::kInvalidArgument, "MALFORMED_REQUEST",
                   absl::StrCat("the request cannot be parsed as ", Message::descriptor()->full_name(),
                                ": malformed bytes, or text that is not UTF-8"));
  }
  return message;
}

template <typename Message>
grpc::ByteBuffer SerializeMessage(const Message& message) {
  grpc::ByteBuffer bytes;
  bool own_buffer = false;
  const grpc::Status status =
      grpc::GenericSerialize<grpc::ProtoBufferWriter, Message>(message, &bytes, &own_buffer);
  MILLRACE_CHECK(status.ok());
  return bytes;
}

// Ends a unary call with `answer`.
template <typename Response>
void Answer(const absl::StatusOr<Response>& answer, grpc::ByteBuffer* response,
            grpc::ServerUnaryReactor* reactor) {
  if (answer.ok()) *response = SerializeMessage(*answer);
  reactor->Finish(ToGrpcStatus(answer.status()));
}

}  // namespace millrace
