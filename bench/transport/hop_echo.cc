#include "bench/transport/hop_echo.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/transport/channels.h"
#include "grpcpp/grpcpp.h"

namespace millrace::bench {
namespace {

constexpr size_t kMaxMessageBytes = size_t{64} << 20;
constexpr size_t kMaxQueued = 4096;
constexpr absl::Duration kConnectTimeout = absl::Seconds(20);
constexpr absl::Duration kPatience = absl::Seconds(120);
const Epoch kEpoch(1);

double Now() {
  return absl::ToDoubleSeconds(Clock::Steady().Now() - absl::UnixEpoch());
}

}  // namespace

HopTask TaskOf(const HopMessage& message) {
  return static_cast<HopTask>(message.rows / 2);
}
bool IsOverUnix(const HopMessage& message) {
  return message.rows % 2 == 1;
}

HopPeer::HopPeer(std::function<bool(HopMessage)> on_message) {
  HopSession session;
  session.epoch = kEpoch;
  session.limits = {8, 8, kMaxMessageBytes};
  session.deliver = std::move(on_message);
  listener_.SetSession(std::move(session));
  grpc::ServerBuilder builder;
  ConfigureServer(builder, size_t{1} << 30);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  addresses_.unix_socket = absl::StrCat("unix-abstract:millrace-hop-echo-", getpid());
  builder.AddListeningPort(addresses_.unix_socket, grpc::InsecureServerCredentials());
  builder.RegisterService(listener_.service());
  server_ = builder.BuildAndStart();
  MILLRACE_CHECK(server_ != nullptr && port != 0);
  addresses_.tcp = absl::StrCat("127.0.0.1:", port);
}

HopPeer::~HopPeer() {
  for (std::unique_ptr<HopLink>& link : links_) link.reset();
  server_->Shutdown(std::chrono::system_clock::now());
}

void HopPeer::Connect(const HopAddresses& other) {
  for (const bool over_unix : {false, true}) {
    HopLinkOptions options;
    options.address = over_unix ? other.unix_socket : other.tcp;
    options.epoch = kEpoch;
    options.max_queued = kMaxQueued;
    links_[over_unix] = std::make_unique<HopLink>(std::move(options));
    const absl::Status status = links_[over_unix]->WaitConnected(kConnectTimeout);
    if (!status.ok()) std::fprintf(stderr, "transport_bench: %s\n", status.ToString().c_str());
    MILLRACE_CHECK(status.ok());
  }
}

void HopPeer::Send(bool over_unix, HopMessage message) {
  MILLRACE_CHECK(links_[over_unix]->Send(std::move(message)));
}

HopMessage HopPeer::Make(HopTask task, bool over_unix, size_t bytes) {
  HopMessage message;
  message.epoch = kEpoch;
  message.microbatch = MicrobatchId(1);
  message.rows = static_cast<uint32_t>(task) * 2 + (over_unix ? 1 : 0);
  message.payload = pool_.Get(bytes);
  std::memset(message.payload->data, 'h', bytes);
  return message;
}

void RunHopEcho(const HopAddresses& other) {
  BoundedQueue<HopMessage> queue(64);
  HopPeer* peer_address = nullptr;
  HopPeer peer([&](HopMessage message) {
    const bool over_unix = IsOverUnix(message);
    switch (TaskOf(message)) {
      case HopTask::kEcho:
        peer_address->Send(over_unix, std::move(message));
        return true;
      case HopTask::kEchoByQueue:
        return queue.TryPush(std::move(message));
      case HopTask::kSwallow:
        return true;
      case HopTask::kSwallowLast:
        peer_address->Send(over_unix, peer_address->Make(HopTask::kSwallowLast, over_unix, 0));
        return true;
    }
    return false;
  });
  peer_address = &peer;
  peer.Connect(other);
  std::printf("%s %s\n", peer.addresses().tcp.c_str(), peer.addresses().unix_socket.c_str());
  std::fflush(stdout);
  while (std::optional<HopMessage> message = queue.Pop()) {
    const bool over_unix = IsOverUnix(*message);
    peer.Send(over_unix, *std::move(message));
  }
  std::abort();
}

HopClient::HopClient() : peer_([this](HopMessage message) { return OnMessage(std::move(message)); }) {}

bool HopClient::OnMessage(HopMessage message) {
  if (TaskOf(message) != HopTask::kEcho || left_.fetch_sub(1) == 1) {
    return returned_.TryPush(std::move(message));
  }
  const bool over_unix = IsOverUnix(message);
  peer_.Send(over_unix, std::move(message));
  return true;
}

double HopClient::Echo(bool over_unix, size_t bytes, uint32_t count) {
  left_ = count;
  const double begin = Now();
  peer_.Send(over_unix, peer_.Make(HopTask::kEcho, over_unix, bytes));
  MILLRACE_CHECK(returned_.Pop(kPatience).has_value());
  return Now() - begin;
}

double HopClient::EchoByQueue(bool over_unix, size_t bytes, uint32_t count) {
  HopMessage message = peer_.Make(HopTask::kEchoByQueue, over_unix, bytes);
  const double begin = Now();
  for (uint32_t i = 0; i < count; ++i) {
    peer_.Send(over_unix, std::move(message));
    std::optional<HopMessage> returned = returned_.Pop(kPatience);
    MILLRACE_CHECK(returned.has_value());
    message = *std::move(returned);
  }
  return Now() - begin;
}

double HopClient::OneWay(bool over_unix, size_t bytes, uint32_t count) {
  MILLRACE_CHECK(count <= kMaxQueued);
  const HopMessage message = peer_.Make(HopTask::kSwallow, over_unix, bytes);
  HopMessage last = message;
  last.rows += 2;
  const double begin = Now();
  for (uint32_t i = 0; i + 1 < count; ++i) peer_.Send(over_unix, message);
  peer_.Send(over_unix, std::move(last));
  MILLRACE_CHECK(returned_.Pop(kPatience).has_value());
  return Now() - begin;
}

}  // namespace millrace::bench
