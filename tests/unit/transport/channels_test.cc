#include "common/transport/channels.h"

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bounded_queue.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

TEST(ParseHostPortTest, ReadsWhatUsersWrite) {
  const std::vector<std::pair<std::string, std::pair<std::string, int>>> cases = {
      {"127.0.0.1:0", {"127.0.0.1", 0}},     {"worker-1.ring:7000", {"worker-1.ring", 7000}},
      {"[::1]:50051", {"::1", 50051}},       {"[fe80::1%eth0]:1", {"fe80::1%eth0", 1}},
      {"0.0.0.0:65535", {"0.0.0.0", 65535}},
  };
  for (const auto& [text, expected] : cases) {
    const absl::StatusOr<HostPort> parsed = ParseHostPort(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->host, expected.first);
    EXPECT_EQ(parsed->port, expected.second);
    EXPECT_EQ(parsed->ToString(), text);
  }
}

TEST(ParseHostPortTest, RefusesEverythingElse) {
  for (const char* text : {"",        ":",           "host",    ":80",       "host:",     "host:65536",
                           "host:-1", "host:+1",     "host: 1", "host:1 ",   "host:0x10", "host:99999999999",
                           "::1:80",  "[::1]",       "[]:80",   "[:80",      "]:80",      "a b:80",
                           "a/b:80",  "http://a:80", "a[b]:80", "ho\nst:80", "host:80\n"}) {
    const absl::Status status = ParseHostPort(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("is not HOST:PORT, such as 127.0.0.1:50051"))
        << text;
  }
}

TEST(HostTest, TellsLoopbackAndAnyFromOthers) {
  for (const char* host : {"localhost", "::1", "127.0.0.1", "127.1.2.3"})
    EXPECT_TRUE(IsLoopback(host)) << host;
  for (const char* host : {"10.0.0.1", "::", "example", "0.0.0.0"}) EXPECT_FALSE(IsLoopback(host)) << host;
  for (const char* host : {"0.0.0.0", "::"}) EXPECT_TRUE(IsAnyAddress(host)) << host;
  for (const char* host : {"127.0.0.1", "::1", ""}) EXPECT_FALSE(IsAnyAddress(host)) << host;
}

TEST(SourceAddressTest, IsTheAddressOnTheSameNetwork) {
  const absl::StatusOr<std::string> source = SourceAddressTowards({"127.0.0.1", 9});
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(*source, "127.0.0.1");
}

TEST(SourceAddressTest, RefusesANameThatDoesNotResolve) {
  // Longer than any name may be, so that no server is asked.
  const absl::Status status = SourceAddressTowards({std::string(300, 'a'), 9}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot resolve"));
}

struct TestServer {
  explicit TestServer(int port) {
    grpc::ServerBuilder builder;
    ConfigureServer(builder, 1024);
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(), &bound);
    builder.RegisterCallbackGenericService(&service);
    server = builder.BuildAndStart();
  }
  grpc::CallbackGenericService service;
  std::unique_ptr<grpc::Server> server;
  int bound = 0;
};

TEST(ConfigureServerTest, RefusesAPortInUse) {
  const TestServer first(0);
  ASSERT_NE(first.server, nullptr);
  ASSERT_GT(first.bound, 0);
  const TestServer second(first.bound);
  EXPECT_TRUE(second.server == nullptr || second.bound == 0);
}

// Notes from which connection each call came, and refuses it.
class PeerNoter final : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    peers.Push(context->peer());
    return grpc::CallbackGenericService::CreateReactor(context);
  }
  BoundedQueue<std::string> peers{100};
};

std::string PeerOfACall(const std::shared_ptr<grpc::Channel>& channel, PeerNoter& noter) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  grpc::Slice nothing;
  grpc::ByteBuffer request(&nothing, 1);
  grpc::ByteBuffer response;
  BoundedQueue<grpc::StatusCode> ended(1);
  stub.UnaryCall(&context, "/any/Method", grpc::StubOptions(), &request, &response,
                 [&](grpc::Status status) { ended.Push(status.error_code()); });
  EXPECT_EQ(ended.Pop(absl::Seconds(60)), grpc::StatusCode::UNIMPLEMENTED);
  return noter.peers.Pop(absl::Seconds(60)).value_or("");
}

// A plan never stands behind activations in one connection, nor one link's behind another's.
TEST(ChannelTest, HopsHaveConnectionsOfTheirOwn) {
  PeerNoter noter;
  grpc::ServerBuilder builder;
  ConfigureServer(builder, 1024);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&noter);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const std::string address = absl::StrCat("127.0.0.1:", port);
  std::vector<std::shared_ptr<grpc::Channel>> channels = {MakeControlChannel(address),
                                                          MakeBulkChannel(address), MakeBulkChannel(address)};
  std::set<std::string> peers;
  for (const std::shared_ptr<grpc::Channel>& channel : channels) peers.insert(PeerOfACall(channel, noter));
  EXPECT_EQ(peers.size(), 3u);
  EXPECT_EQ(peers.count(""), 0u);
  channels.clear();
  server->Shutdown();
}

TEST(PeerStatusTest, KeepsCodeAndMessageBothWays) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "what happened");
    const grpc::Status peer = ToPeerStatus(status);
    EXPECT_EQ(peer.error_code(), code);
    EXPECT_EQ(FromPeerStatus(peer), status);
  }
}

// A status travels in a header, whose size is limited.
TEST(PeerStatusTest, CutsLongMessages) {
  const grpc::Status peer = ToPeerStatus(absl::InternalError(std::string(100000, 'x')));
  EXPECT_EQ(peer.error_message(), std::string(1024, 'x'));
}

}  // namespace
}  // namespace millrace
