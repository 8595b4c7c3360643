#include "common/transport/channels.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/transport/local_socket.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace millrace {
namespace {

constexpr size_t kMaxStatusMessage = 1024;

// gRPC's default keepalive takes two hours to notice a peer that vanished without a word.
constexpr int kKeepaliveTimeMs = 10000;
constexpr int kKeepaliveTimeoutMs = 5000;
constexpr int kConnectTimeoutMs = 5000;
constexpr int kLookUpAgainMs = 1000;

grpc::ChannelArguments CommonArguments() {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // What gRPC names a back-off is how long one attempt to connect may take: on a busy host, far more than 100
  // ms.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A coordinator that was restarted elsewhere keeps its name and changes its address; gRPC would look again
  // after 30 s.
  args.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, kLookUpAgainMs);
  // Cluster traffic must never wander through a proxy that the environment names for web traffic.
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetMaxReceiveMessageSize(-1);
  args.SetMaxSendMessageSize(-1);
  return args;
}

std::shared_ptr<grpc::Channel> Connect(const std::string& address, const SharedCredentials& credentials,
                                       grpc::ChannelArguments args) {
  if (credentials == nullptr || IsUnixAddress(address)) {
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
  }
  if (!credentials->options().name.empty()) args.SetSslTargetNameOverride(credentials->options().name);
  return grpc::CreateCustomChannel(address, credentials->ForChannel(), args);
}

}  // namespace

std::shared_ptr<grpc::Channel> MakeControlChannel(const std::string& address,
                                                  const SharedCredentials& credentials) {
  return Connect(address, credentials, CommonArguments());
}

std::shared_ptr<grpc::Channel> MakeBulkChannel(const std::string& address,
                                               const SharedCredentials& credentials, int max_message_bytes) {
  grpc::ChannelArguments args = CommonArguments();
  args.SetMaxReceiveMessageSize(max_message_bytes);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, (16 << 20) - 1);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 20);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_TCP_READ_CHUNK_SIZE, 1 << 20);
  return Connect(address, credentials, std::move(args));
}

void ConfigureServer(grpc::ServerBuilder& builder, size_t max_message_bytes) {
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kKeepaliveTimeMs / 2);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, (16 << 20) - 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 20);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_TCP_READ_CHUNK_SIZE, 1 << 20);
  builder.SetMaxReceiveMessageSize(static_cast<int>(max_message_bytes));
  builder.SetMaxSendMessageSize(-1);
}

std::string HostPort::ToString() const {
  return absl::StrContains(host, ':') ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const absl::Status error = absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is not HOST:PORT, such as 127.0.0.1:50051 or [::1]:0"));
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return error;
  HostPort result;
  absl::string_view host = text.substr(0, colon);
  uint32_t port = 0;
  const absl::string_view digits = text.substr(colon + 1);
  // SimpleAtoi alone would take spaces and a sign.
  if (!std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit) || !absl::SimpleAtoi(digits, &port) ||
      port > 65535) {
    return error;
  }
  result.port = static_cast<uint16_t>(port);
  if (host.front() == '[' && host.back() == ']' && host.size() > 2) {
    host = host.substr(1, host.size() - 2);
  } else if (absl::StrContains(host, ':')) {
    return error;
  }
  if (host.find_first_of(" /[]\t\n") != absl::string_view::npos) return error;
  result.host = std::string(host);
  return result;
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || absl::StartsWith(host, "127.");
}

bool IsAnyAddress(const std::string& host) {
  return host == "0.0.0.0" || host == "::";
}

absl::StatusOr<std::string> SourceAddressTowards(const HostPort& peer) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int rc = getaddrinfo(peer.host.c_str(), absl::StrCat(peer.port).c_str(), &hints, &found);
  if (rc != 0) {
    return absl::UnavailableError(absl::StrCat("cannot resolve '", peer.host, "': ", gai_strerror(rc)));
  }
  std::string source;
  for (const addrinfo* it = found; it != nullptr && source.empty(); it = it->ai_next) {
    const int fd = socket(it->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    sockaddr_storage local = {};
    socklen_t size = sizeof(local);
    char text[NI_MAXHOST];
    // Connecting a datagram socket sends nothing; it only makes the kernel choose the route.
    if (connect(fd, it->ai_addr, it->ai_addrlen) == 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&local), &size) == 0 &&
        getnameinfo(reinterpret_cast<sockaddr*>(&local), size, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) == 0) {
      source = text;
    }
    close(fd);
  }
  freeaddrinfo(found);
  if (source.empty()) return absl::UnavailableError(absl::StrCat("no route to '", peer.host, "'"));
  return source;
}

grpc::Status ToPeerStatus(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message().substr(0, kMaxStatusMessage)));
}

absl::Status FromPeerStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace millrace
