// Two processes joined by hops in both directions, over TCP and over Unix sockets: the HopLink and
// HopListener that the ring uses.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "common/bounded_queue.h"
#include "common/buffer_pool.h"
#include "common/hop_message.h"
#include "common/transport/hop_link.h"
#include "common/transport/hop_listener.h"
#include "grpcpp/server.h"

namespace millrace::bench {

enum class HopTask : uint32_t {
  kEcho = 0,         // answered in the thread that received it
  kEchoByQueue = 1,  // answered by another thread
  kSwallow = 2,
  kSwallowLast = 3,  // answered with an empty message
};

struct HopAddresses {
  std::string tcp;
  std::string unix_socket;
};

// A listener on both kinds of sockets, and a link over each to the other process.
class HopPeer {
 public:
  // `on_message` may call Send. Thread: grpc.
  explicit HopPeer(std::function<bool(HopMessage)> on_message);
  ~HopPeer();

  const HopAddresses& addresses() const { return addresses_; }
  // Aborts if there is no connection.
  void Connect(const HopAddresses& other);
  void Send(bool over_unix, HopMessage message);
  // A message of the task, `bytes` long; the hop it is for is part of it, so that the answer takes the same.
  HopMessage Make(HopTask task, bool over_unix, size_t bytes);

 private:
  BufferPool pool_{8};
  HopListener listener_{""};
  std::unique_ptr<grpc::Server> server_;
  HopAddresses addresses_;
  std::unique_ptr<HopLink> links_[2];
};

HopTask TaskOf(const HopMessage& message);
bool IsOverUnix(const HopMessage& message);

// The other process: answers until its peer is gone. Never returns.
[[noreturn]] void RunHopEcho(const HopAddresses& peer);

// This process.
class HopClient {
 public:
  HopClient();
  const HopAddresses& addresses() const { return peer_.addresses(); }
  void Connect(const HopAddresses& other) { peer_.Connect(other); }

  // Seconds for `count` round trips, the next one sent by the thread that received the last.
  double Echo(bool over_unix, size_t bytes, uint32_t count);
  // The same with a hand-off to another thread at both ends.
  double EchoByQueue(bool over_unix, size_t bytes, uint32_t count);
  // As many messages one way, and one small one back.
  double OneWay(bool over_unix, size_t bytes, uint32_t count);

 private:
  bool OnMessage(HopMessage message);

  std::atomic<uint32_t> left_{0};
  BoundedQueue<HopMessage> returned_{64};
  HopPeer peer_;
};

}  // namespace millrace::bench
