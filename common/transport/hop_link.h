// The outbound half of a hop: a stream to the next stage, or back to the coordinator.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/hop_message.h"
#include "common/transport/credentials.h"

namespace millrace {

inline constexpr char kSecretMetadata[] = "millrace-secret";
inline constexpr char kEpochMetadata[] = "millrace-epoch";

struct HopLinkOptions {
  std::string address;
  SharedCredentials credentials;  // null: plain text
  std::string secret;
  Epoch epoch;
  size_t max_queued = 0;  // messages; the number of microbatches in flight never exceeds it
  // Writes begin on a thread of the link, not on the one that calls Send. gRPC writes to the socket, and
  // wakes whoever reads there, on the thread that begins a write: 0.3 to 1 ms of a compute thread, if cores
  // are few.
  bool own_writer = false;
  // Called at most once, when the stream ends before Close. Thread: grpc. Must not destroy the link.
  std::function<void(absl::Status)> on_broken;
};

// Thread: any. Messages leave in the order of Send.
class HopLink {
 public:
  explicit HopLink(HopLinkOptions options);
  ~HopLink();  // closes, and waits until gRPC is done with the stream
  HopLink(const HopLink&) = delete;
  HopLink& operator=(const HopLink&) = delete;

  // Waits until the receiver has accepted the stream. UNAVAILABLE or the receiver's status otherwise.
  absl::Status WaitConnected(absl::Duration timeout);

  // Never waits. False when the stream is gone or max_queued messages are waiting.
  bool Send(HopMessage message);

  void Close();

 private:
  class Stream;
  std::unique_ptr<Stream> stream_;
};

}  // namespace millrace
