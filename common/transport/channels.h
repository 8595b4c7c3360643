// How every channel and server of the project is set up, and the address forms users write.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/transport/credentials.h"
#include "grpcpp/channel.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/support/status.h"

namespace millrace {

// Control streams and client calls: small messages. Null credentials: plain text.
std::shared_ptr<grpc::Channel> MakeControlChannel(const std::string& address,
                                                  const SharedCredentials& credentials = nullptr);

// Hops: activations of any size, on connections of their own so that a large one never stands before a plan.
// Those to Unix sockets are plain text, whatever the credentials. Answers above `max_message_bytes` end with
// RESOURCE_EXHAUSTED; negative: none is too large.
std::shared_ptr<grpc::Channel> MakeBulkChannel(const std::string& address,
                                               const SharedCredentials& credentials = nullptr,
                                               int max_message_bytes = -1);

// Refuses a port that is in use (gRPC would share it), takes messages of up to `max_message_bytes`.
void ConfigureServer(grpc::ServerBuilder& builder, size_t max_message_bytes);

struct HostPort {
  std::string host;
  uint16_t port = 0;
  std::string ToString() const;  // host:port, [host]:port for IPv6
};
// "127.0.0.1:0", "[::1]:50051", "worker-1.ring:7000". INVALID_ARGUMENT: anything else, with what is expected.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);
bool IsLoopback(const std::string& host);
bool IsAnyAddress(const std::string& host);

// The local address that packets to `peer` leave from. UNAVAILABLE: no route, or the name does not resolve.
absl::StatusOr<std::string> SourceAddressTowards(const HostPort& peer);

// Between the two status types, for what our own processes say to each other (clients get details, too: see
// the frontend). The codes are the same numbers.
grpc::Status ToPeerStatus(const absl::Status& status);
absl::Status FromPeerStatus(const grpc::Status& status);

}  // namespace millrace
