// Many Generate streams on one thread: what a load generator needs, at the least cost in CPU, because it
// shares the cores with what it measures.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_set>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/control.grpc.pb.h"
#include "millrace/v1/inference.grpc.pb.h"

namespace millrace::bench {

// One request from its sending to its end. Times are of the steady clock.
struct StreamRecord {
  v1::GenerateRequest request;
  absl::Time sent;
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();
  uint32_t tokens = 0;
  std::vector<uint32_t> token_ids;  // what was generated
};

// Some tokens of one stream, just come. The record is as it was before them.
struct TokensArrived {
  const StreamRecord& record;
  const v1::TokenDelta& delta;
  absl::Time now;
};

// Thread: one, which is the only one that handles events, inside Poll.
class LoadClient {
 public:
  struct Callbacks {
    std::function<void(const TokensArrived&)> on_tokens;
    // The stream ended, with OK or not.
    std::function<void(const StreamRecord&, const grpc::Status&)> on_done;
  };
  LoadClient(std::shared_ptr<grpc::Channel> channel, Callbacks callbacks);
  // Cancels what is left and waits for it, at most kDrain.
  ~LoadClient();

  void Start(v1::GenerateRequest request);
  size_t live() const { return streams_.size(); }

  // Handles events until `until`, or until `done()` is true after one of them.
  void Poll(absl::Time until, const std::function<bool()>& done);

  void CancelAll();

  // Blocking calls with a deadline of their own.
  absl::StatusOr<v1::GetLoadResponse> Load();
  absl::StatusOr<v1::GetModelInfoResponse> ModelInfo();

 private:
  struct Stream;
  void Handle(Stream* stream, bool ok);

  static constexpr absl::Duration kDrain = absl::Seconds(10);
  static constexpr absl::Duration kCallTimeout = absl::Seconds(10);

  const Callbacks callbacks_;
  const std::unique_ptr<v1::Inference::Stub> inference_;
  const std::unique_ptr<v1::Control::Stub> control_;
  grpc::CompletionQueue queue_;
  std::unordered_set<Stream*> streams_;
};

}  // namespace millrace::bench
