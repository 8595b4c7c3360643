// HopLink and HopListener against each other, over a real server on a port of the loopback interface.
#include "common/transport/hop_link.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bounded_queue.h"
#include "common/transport/channels.h"
#include "common/transport/hop_listener.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "millrace/v1/cluster.grpc.pb.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr char kSecret[] = "s3cret";
constexpr absl::Duration kPatience = absl::Seconds(60);

// A port that nothing listens on while this object lives.
class DeadPort {
 public:
  DeadPort() : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~DeadPort() { close(fd_); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  const int fd_;
  int port_ = 0;
};

// With and without a writer of its own.
class HopLinkTest : public ::testing::TestWithParam<bool> {
 protected:
  HopLinkTest() : listener_(kSecret) {
    grpc::ServerBuilder builder;
    ConfigureServer(builder, 16 << 20);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(listener_.service());
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  ~HopLinkTest() override {
    link_.reset();
    StopServer();
  }

  void StopServer() { server_->Shutdown(std::chrono::system_clock::now()); }

  // A session whose messages go to received_.
  HopSession Session(uint64_t epoch) {
    HopSession session;
    session.epoch = Epoch(epoch);
    session.limits = {64, 4, 1 << 16};
    session.deliver = [this](HopMessage message) { return received_.TryPush(std::move(message)); };
    return session;
  }

  HopLinkOptions Options(uint64_t epoch = 1) {
    HopLinkOptions options;
    options.address = address_;
    options.secret = kSecret;
    options.epoch = Epoch(epoch);
    options.max_queued = 1000;
    options.own_writer = GetParam();
    options.on_broken = [this](absl::Status why) { broken_.TryPush(std::move(why)); };
    return options;
  }

  void Connect(uint64_t epoch = 1) {
    link_ = std::make_unique<HopLink>(Options(epoch));
    const absl::Status status = link_->WaitConnected(kPatience);
    ASSERT_TRUE(status.ok()) << status;
  }

  HopMessage Message(uint64_t id, uint64_t epoch = 1, size_t bytes = 100) {
    HopMessage message;
    message.epoch = Epoch(epoch);
    message.microbatch = MicrobatchId(id);
    message.rows = 1;
    message.payload = pool_.Get(bytes);
    std::fill_n(message.payload->data, bytes, static_cast<uint8_t>(id));
    return message;
  }

  // Waits for the link to break, once, and drops it.
  void ExpectBroken(absl::StatusCode code, const std::string& why) {
    const std::optional<absl::Status> status = broken_.Pop(kPatience);
    ASSERT_TRUE(status.has_value());
    EXPECT_EQ(status->code(), code) << *status;
    EXPECT_THAT(std::string(status->message()), HasSubstr(why));
    EXPECT_THAT(std::string(status->message()), HasSubstr(absl::StrCat("hop to ", address_)));
    link_.reset();
    EXPECT_EQ(broken_.size(), 0u);
  }

  // Waits for a link that is refused.
  void ExpectRefused(HopLinkOptions options, absl::StatusCode code, const std::string& why) {
    link_ = std::make_unique<HopLink>(std::move(options));
    EXPECT_EQ(link_->WaitConnected(kPatience).code(), code);
    ExpectBroken(code, why);
  }

  BufferPool pool_{64};
  BoundedQueue<HopMessage> received_{1000};
  BoundedQueue<absl::Status> broken_{10};
  HopListener listener_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::unique_ptr<HopLink> link_;
};

INSTANTIATE_TEST_SUITE_P(OwnWriter, HopLinkTest, ::testing::Bool());

TEST_P(HopLinkTest, DeliversInTheOrderOfSending) {
  listener_.SetSession(Session(1));
  Connect();
  for (uint64_t id = 1; id <= 200; ++id) ASSERT_TRUE(link_->Send(Message(id, 1, id * 50)));
  for (uint64_t id = 1; id <= 200; ++id) {
    const std::optional<HopMessage> message = received_.Pop(kPatience);
    ASSERT_TRUE(message.has_value());
    ASSERT_EQ(message->microbatch, MicrobatchId(id));
    ASSERT_EQ(message->payload->size, id * 50);
    for (size_t i = 0; i < message->payload->size; ++i) {
      ASSERT_EQ(message->payload->data[i], static_cast<uint8_t>(id));
    }
  }
  EXPECT_EQ(broken_.size(), 0u);
}

// The receiver is stuck with a message, more are queued than any buffer on the way holds, and yet what goes
// by the control channel arrives.
TEST_P(HopLinkTest, DoesNotHoldUpControlMessagesWhenItIsHeldUp) {
  constexpr size_t kLarge = size_t{4} << 20;
  BoundedQueue<int> let_go(1);
  BoundedQueue<int> stuck(100);
  HopSession session = Session(1);
  session.limits.max_payload_bytes = kLarge;
  session.deliver = [&](HopMessage message) {
    stuck.Push(1);
    let_go.Pop(kPatience);
    return received_.TryPush(std::move(message));
  };
  listener_.SetSession(std::move(session));
  Connect();
  const HopMessage large = Message(1, 1, kLarge);
  for (int i = 0; i < 16; ++i) ASSERT_TRUE(link_->Send(large));
  ASSERT_TRUE(stuck.Pop(kPatience).has_value());
  ASSERT_EQ(received_.size(), 0u);
  const auto control = v1::Ring::NewStub(MakeControlChannel(address_));
  grpc::ClientContext context;
  context.AddMetadata(kSecretMetadata, "wrong");
  EXPECT_EQ(control->Hop(&context)->Finish().error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(received_.size(), 0u);
  let_go.Close();
  for (int i = 0; i < 16; ++i) ASSERT_TRUE(received_.Pop(kPatience).has_value());
}

TEST_P(HopLinkTest, SendsWhatWasQueuedBeforeTheConnectionStood) {
  listener_.SetSession(Session(1));
  link_ = std::make_unique<HopLink>(Options());
  ASSERT_TRUE(link_->Send(Message(1)));
  ASSERT_TRUE(received_.Pop(kPatience).has_value());
}

TEST_P(HopLinkTest, IsRefusedWithAWrongSecret) {
  listener_.SetSession(Session(1));
  for (const char* secret : {"", "s3cre", "s3cret2", "S3cret"}) {
    HopLinkOptions options = Options();
    options.secret = secret;
    ExpectRefused(std::move(options), absl::StatusCode::kPermissionDenied, "wrong join secret");
  }
}

TEST_P(HopLinkTest, IsRefusedForAnyEpochButTheCurrentOne) {
  ExpectRefused(Options(1), absl::StatusCode::kFailedPrecondition, "epoch 1 is not the current one");
  listener_.SetSession(Session(2));
  for (const uint64_t epoch : {0, 1, 3}) {
    ExpectRefused(Options(epoch), absl::StatusCode::kFailedPrecondition, "is not the current one");
  }
  listener_.ClearSession();
  ExpectRefused(Options(2), absl::StatusCode::kFailedPrecondition, "epoch 2 is not the current one");
}

TEST_P(HopLinkTest, IsEndedWhenTheSessionIsReplaced) {
  listener_.SetSession(Session(1));
  Connect();
  listener_.SetSession(Session(2));
  ExpectBroken(absl::StatusCode::kFailedPrecondition, "the epoch is over");
  Connect(2);
  ASSERT_TRUE(link_->Send(Message(1, 2)));
  EXPECT_TRUE(received_.Pop(kPatience).has_value());
  listener_.ClearSession();
  ExpectBroken(absl::StatusCode::kFailedPrecondition, "the epoch is over");
}

// Messages are on their way all the time while sessions come and go.
TEST_P(HopLinkTest, DeliversNothingToASessionThatWasReplaced) {
  for (uint64_t epoch = 1; epoch <= 8; ++epoch) {
    std::atomic<bool> over{false};
    std::atomic<int> late{0};
    BoundedQueue<int> first(1);
    HopSession session = Session(epoch);
    session.deliver = [&](HopMessage) {
      if (over) ++late;
      first.TryPush(1);
      return true;
    };
    listener_.SetSession(std::move(session));
    Connect(epoch);
    std::atomic<bool> stop{false};
    std::thread sender([&] {
      for (uint64_t id = 1; !stop; ++id) {
        if (!link_->Send(Message(id, epoch))) std::this_thread::yield();
      }
    });
    ASSERT_TRUE(first.Pop(kPatience).has_value());
    listener_.SetSession(Session(epoch + 1000));
    over = true;
    ASSERT_TRUE(broken_.Pop(kPatience).has_value());
    stop = true;
    sender.join();
    link_.reset();
    EXPECT_EQ(late, 0) << "epoch " << epoch;
  }
}

TEST_P(HopLinkTest, DropsMessagesOfAnotherEpoch) {
  listener_.SetSession(Session(1));
  Connect();
  ASSERT_TRUE(link_->Send(Message(1, 9)));
  ASSERT_TRUE(link_->Send(Message(2, 1)));
  const std::optional<HopMessage> message = received_.Pop(kPatience);
  ASSERT_TRUE(message.has_value());
  EXPECT_EQ(message->microbatch, MicrobatchId(2));
}

TEST_P(HopLinkTest, BreaksWhenTheReceiverHasNoRoom) {
  HopSession session = Session(1);
  session.deliver = [this](HopMessage message) {
    return message.microbatch.value() < 3 && received_.TryPush(std::move(message));
  };
  listener_.SetSession(std::move(session));
  Connect();
  for (uint64_t id = 1; id <= 5; ++id) link_->Send(Message(id));
  ExpectBroken(absl::StatusCode::kResourceExhausted, "more microbatches in flight than agreed on");
  EXPECT_EQ(received_.size(), 2u);
}

TEST_P(HopLinkTest, BreaksWhenAMessageExceedsTheLimits) {
  listener_.SetSession(Session(1));
  Connect();
  ASSERT_TRUE(link_->Send(Message(1, 1, (1 << 16) + 1)));
  ExpectBroken(absl::StatusCode::kInvalidArgument, "payload bytes exceed the limits");
  EXPECT_EQ(received_.size(), 0u);
}

TEST_P(HopLinkTest, BreaksOnceWhenThePeerGoes) {
  listener_.SetSession(Session(1));
  Connect();
  StopServer();
  const std::optional<absl::Status> status = broken_.Pop(kPatience);
  ASSERT_TRUE(status.has_value());
  EXPECT_FALSE(status->ok());
  EXPECT_FALSE(link_->Send(Message(1)));
  EXPECT_FALSE(link_->WaitConnected(kPatience).ok());
  link_.reset();
  EXPECT_EQ(broken_.size(), 0u);
}

TEST_P(HopLinkTest, SurvivesSendingWhileItBreaks) {
  for (uint64_t epoch = 1; epoch <= 15; ++epoch) {
    listener_.SetSession(Session(epoch));
    Connect(epoch);
    std::atomic<bool> stop{false};
    std::thread sender([&] {
      while (!stop) {
        if (!link_->Send(Message(1, 0))) std::this_thread::yield();
      }
    });
    listener_.ClearSession();
    EXPECT_TRUE(broken_.Pop(kPatience).has_value());
    stop = true;
    sender.join();
    EXPECT_FALSE(link_->Send(Message(1, 0)));
    link_.reset();
  }
}

TEST_P(HopLinkTest, SaysWhenNothingAnswers) {
  const DeadPort port;
  HopLinkOptions options = Options();
  options.address = port.address();
  link_ = std::make_unique<HopLink>(std::move(options));
  const absl::Status status = link_->WaitConnected(absl::Milliseconds(50));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), absl::StrCat("no connection to ", port.address(), " within 50ms"));
  link_.reset();
  EXPECT_EQ(broken_.size(), 0u);
}

TEST_P(HopLinkTest, QueuesNoMoreThanAgreedOn) {
  const DeadPort port;
  HopLinkOptions options = Options();
  options.address = port.address();
  options.max_queued = 3;
  link_ = std::make_unique<HopLink>(std::move(options));
  for (uint64_t id = 1; id <= 3; ++id) EXPECT_TRUE(link_->Send(Message(id)));
  EXPECT_FALSE(link_->Send(Message(4)));
}

TEST_P(HopLinkTest, ReportsNothingOfItsOwnClosing) {
  listener_.SetSession(Session(1));
  Connect();
  link_->Close();
  link_->Close();
  EXPECT_FALSE(link_->Send(Message(1)));
  link_.reset();
  Connect();
  link_.reset();
  EXPECT_EQ(broken_.size(), 0u);
}

TEST_P(HopLinkTest, LetsManyLinksIn) {
  listener_.SetSession(Session(1));
  std::vector<std::unique_ptr<HopLink>> links;
  for (uint64_t i = 0; i < 8; ++i) {
    links.push_back(std::make_unique<HopLink>(Options()));
    ASSERT_TRUE(links.back()->WaitConnected(kPatience).ok());
    ASSERT_TRUE(links.back()->Send(Message(i + 1)));
  }
  std::vector<bool> seen(9, false);
  for (int i = 0; i < 8; ++i) {
    const std::optional<HopMessage> message = received_.Pop(kPatience);
    ASSERT_TRUE(message.has_value());
    seen[message->microbatch.value()] = true;
  }
  for (int i = 1; i <= 8; ++i) EXPECT_TRUE(seen[i]) << i;
}

}  // namespace
}  // namespace millrace
