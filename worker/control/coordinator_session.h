// A worker's control stream to the coordinator.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/transport/credentials.h"
#include "millrace/v1/cluster.pb.h"

namespace millrace {

struct CoordinatorSessionCallbacks {
  // Thread: grpc, one call at a time.
  std::function<void(v1::CoordinatorMessage)> on_message;
  // Called once, last: the stream is over. Thread: grpc. Must not destroy the session.
  std::function<void(absl::Status)> on_closed;
};

// Thread: any. Messages leave in the order of Send.
class CoordinatorSession {
 public:
  // Opens the stream to `address`; waits for nothing. Fails soon (on_closed) if nothing answers there.
  CoordinatorSession(const std::string& address, const SharedCredentials& credentials,
                     CoordinatorSessionCallbacks callbacks);
  ~CoordinatorSession();  // cancels, and waits until gRPC is done with the stream

  // Never waits. False when the stream is gone or far behind.
  bool Send(v1::WorkerMessage message);

  // Ends this side after what was sent; the coordinator then ends its own.
  void Close();

 private:
  class Stream;
  std::unique_ptr<Stream> stream_;
};

// Waits until something at `address` accepts connections; `keep_waiting` is called every few seconds at most
// with the time waited. UNAVAILABLE: nothing did, or TLS is in the way, which is logged at once, too.
// CANCELLED: keep_waiting returned false.
absl::Status WaitForCoordinator(const std::string& address, const SharedCredentials& credentials,
                                absl::Duration timeout,
                                const std::function<bool(absl::Duration)>& keep_waiting);

}  // namespace millrace
