// The inbound half of a hop: the Ring service of a worker or of the coordinator.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/hop_message.h"
#include "common/mutex.h"
#include "common/transport/hop_frame.h"
#include "grpcpp/impl/service_type.h"

namespace millrace {

// What is accepted during one epoch.
struct HopSession {
  Epoch epoch;
  HopLimits limits;
  // Takes a message without waiting; false: no room, which is the sender's fault (it must keep to the number
  // of microbatches in flight), and ends the stream. Thread: grpc.
  std::function<bool(HopMessage)> deliver;
};

// Thread: any. Streams of an epoch other than the current session's are refused.
class HopListener {
 public:
  explicit HopListener(std::string secret);
  ~HopListener();  // REQUIRES: the server it was registered with is shut down

  grpc::Service* service();

  // Ends the streams of the former session; afterwards its `deliver` is not called any more.
  void SetSession(HopSession session);
  void ClearSession();

 private:
  class RingService;
  std::unique_ptr<RingService> service_;
};

}  // namespace millrace
