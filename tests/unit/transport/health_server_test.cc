#include "common/transport/health_server.h"

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

std::chrono::system_clock::time_point Soon() {
  return std::chrono::system_clock::now() + std::chrono::seconds(20);
}

HealthCheckRequest Asking(const std::string& service) {
  HealthCheckRequest request;
  request.set_service(service);
  return request;
}

class HealthServerTest : public testing::Test {
 protected:
  void SetUp() override {
    auto server = HealthServer::Start("127.0.0.1:0", &health_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
    stub_ = Health::NewStub(channel_);
  }
  grpc::Status Check(const std::string& service, HealthCheckResponse* response) {
    grpc::ClientContext context;
    context.set_deadline(Soon());
    return stub_->Check(&context, Asking(service), response);
  }

  HealthState health_;
  std::unique_ptr<HealthServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Health::Stub> stub_;
};

TEST_F(HealthServerTest, SaysWhatTheStateSays) {
  HealthCheckResponse response;
  for (const char* service : {"", "readiness", "startup"}) {
    ASSERT_TRUE(Check(service, &response).ok());
    EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING) << service;
  }
  ASSERT_TRUE(Check("liveness", &response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  health_.SetStarted();
  health_.SetReady(true);
  for (const char* service : {"", "readiness", "startup", "liveness"}) {
    ASSERT_TRUE(Check(service, &response).ok());
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING) << service;
  }
  EXPECT_EQ(Check("no.such.Service", &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(HealthServerTest, WatchersHearOfEachChange) {
  health_.SetStarted();
  grpc::ClientContext context, unknown_context;
  context.set_deadline(Soon());
  unknown_context.set_deadline(Soon());
  const auto reader = stub_->Watch(&context, Asking("readiness"));
  HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  for (const bool ready : {true, false}) {
    health_.SetReady(ready);
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_EQ(response.status() == HealthCheckResponse::SERVING, ready);
  }
  const auto unknown = stub_->Watch(&unknown_context, Asking("no.such.Service"));
  ASSERT_TRUE(unknown->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  // Ends with a watcher still there.
  server_.reset();
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(HealthServerTest, RefusesTheWatcherTooMany) {
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<HealthCheckResponse>>> readers;
  HealthCheckResponse response;
  for (int i = 0; i <= HealthServer::kMaxWatchers; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    contexts.back()->set_deadline(Soon());
    readers.push_back(stub_->Watch(contexts.back().get(), Asking("liveness")));
    ASSERT_EQ(readers.back()->Read(&response), i < HealthServer::kMaxWatchers) << i;
  }
  EXPECT_EQ(readers.back()->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  contexts.front()->TryCancel();
  // Its room is free once the server has noticed.
  bool admitted = false;
  while (!admitted && std::chrono::system_clock::now() < contexts.front()->deadline()) {
    grpc::ClientContext context;
    context.set_deadline(Soon());
    admitted = stub_->Watch(&context, Asking("liveness"))->Read(&response);
    context.TryCancel();
  }
  EXPECT_TRUE(admitted);
  for (const auto& context : contexts) context->TryCancel();
}

TEST_F(HealthServerTest, ServesNothingElse) {
  grpc::GenericStub generic(channel_);
  grpc::ClientContext context;
  context.set_deadline(Soon());
  grpc::CompletionQueue queue;
  const auto call = generic.PrepareUnaryCall(&context, "/grpc.reflection.v1alpha.ServerReflection/X",
                                             grpc::ByteBuffer(), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(HealthServerTest, SaysWhichFlagIsWrong) {
  const auto taken = HealthServer::Start(server_->address(), &health_);
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(taken.status().message().find("--health-listen " + server_->address()), std::string::npos);
  HealthFlags flags;
  EXPECT_TRUE(flags.Check().ok());
  flags.listen = "somewhere";
  EXPECT_NE(flags.Check().message().find("--health-listen: 'somewhere' is not HOST:PORT"), std::string::npos);
  flags.listen = "[::1]:0";
  EXPECT_TRUE(flags.Check().ok());
  flags.liveness_timeout = absl::Seconds(1);
  EXPECT_NE(flags.Check().message().find("--liveness-timeout: at least 2s"), std::string::npos);
}

}  // namespace
}  // namespace millrace
