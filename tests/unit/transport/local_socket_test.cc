#include "common/transport/local_socket.h"

#include <chrono>
#include <memory>
#include <string>

#include "common/transport/channels.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(LocalSocketTest, ThisHostIsItself) {
  EXPECT_EQ(HostIdentity(), HostIdentity());
  EXPECT_NE(HostIdentity().find('/'), std::string::npos) << "boot id and network name space";
}

TEST(LocalSocketTest, AddressesDiffer) {
  const std::string first = MakeUnixAddress();
  ASSERT_FALSE(first.empty());
  EXPECT_NE(first, MakeUnixAddress());
}

TEST(LocalSocketTest, KnowsItsOwnAddresses) {
  EXPECT_TRUE(IsUnixAddress(MakeUnixAddress()));
  for (const std::string& address :
       {std::string(), std::string("127.0.0.1:80"), std::string("unix:/run/docker.sock"),
        std::string("unix-abstract:other"), std::string("unix-abstract:millrace-"),
        std::string("unix-abstract:millrace-../x"), "unix-abstract:millrace-" + std::string(200, 'a')}) {
    EXPECT_FALSE(IsUnixAddress(address)) << address;
  }
}

TEST(LocalSocketTest, AServerCanListenThere) {
  const std::string address = MakeUnixAddress();
  grpc::AsyncGenericService service;
  grpc::ServerBuilder builder;
  ConfigureServer(builder, 1 << 20);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterAsyncGenericService(&service);
  const std::unique_ptr<grpc::ServerCompletionQueue> queue = builder.AddCompletionQueue();
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  EXPECT_TRUE(MakeBulkChannel(address)->WaitForConnected(std::chrono::system_clock::now() +
                                                         std::chrono::seconds(60)));
  server->Shutdown();
  queue->Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue->Next(&tag, &ok)) continue;
}

}  // namespace
}  // namespace millrace
