// The Control service of control.proto.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "coordinator/frontend/request_registry.h"
#include "coordinator/pipeline/engine_port.h"
#include "millrace/v1/control.grpc.pb.h"
#include "model/hyper_parameters.h"
#include "model/tokenizer.h"

namespace millrace {

// What of a drain is not the frontend's. Thread: any; nothing here waits. The defaults are those of a server
// without workers.
struct DrainPort {
  // The whole coordinator is to be drained; may come again.
  std::function<void()> on_drain = [] {};
  // Nothing is live, and nothing will be.
  std::function<void()> on_all_idle = [] {};
  // Calls `done` once: whether what runs on the ring of `stage`, or all that is live, has ended within
  // `wait`. INVALID_ARGUMENT: there is no such stage. UNAVAILABLE: the server stops.
  std::function<void(std::optional<uint32_t> stage, absl::Duration wait,
                     std::function<void(absl::StatusOr<bool>)> done)>
      drain = [](std::optional<uint32_t>, absl::Duration, auto done) { done(true); };
};

struct ControlServiceOptions {
  const Tokenizer* tokenizer = nullptr;
  RequestRegistry* registry = nullptr;
  const Clock* clock = nullptr;
  HyperParameters model;
  std::string fingerprint;
  KvType kv_type = KvType::kF32;
  uint64_t weight_bytes = 0;
  bool has_chat_template = false;
  std::string version;
  uint32_t max_queued_requests = 0;
  uint32_t max_running_requests = 0;
  size_t max_input_bytes = 0;
  std::function<size_t()> queued_jobs;  // requests that wait for the text thread
  DrainPort drain;
};

using RawControl =
    v1::Control::WithRawCallbackMethod_GetServerInfo<v1::Control::WithRawCallbackMethod_GetModelInfo<
        v1::Control::WithRawCallbackMethod_GetLoad<v1::Control::WithRawCallbackMethod_GetCluster<
            v1::Control::WithRawCallbackMethod_Abort<v1::Control::WithRawCallbackMethod_Trace<
                v1::Control::WithRawCallbackMethod_Drain<v1::Control::Service>>>>>>>;

// Thread: gRPC's, any number at once. Nothing here waits: Drain answers when DrainPort does.
class ControlService final : public RawControl {
 public:
  explicit ControlService(ControlServiceOptions options);

  void set_engine(EnginePort* engine) { engine_ = engine; }  // before the first call

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetCluster(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Trace(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;

 private:
  absl::StatusOr<absl::Duration> TraceLength(const grpc::ByteBuffer& request) const;
  v1::GetServerInfoResponse ServerInfo() const;
  v1::GetModelInfoResponse ModelInfo() const;
  v1::GetLoadResponse Load() const;
  v1::GetClusterResponse Cluster() const;
  absl::StatusOr<v1::AbortResponse> AbortRequests(const v1::AbortRequest& request);
  v1::DrainResponse Drained(bool of_stage, bool finished) const;

  const ControlServiceOptions options_;
  const absl::Time started_;
  const std::shared_ptr<std::atomic<int>> traces_ = std::make_shared<std::atomic<int>>(0);
  std::atomic<int> drains_{0};  // that are not answered
  EnginePort* engine_ = nullptr;
};

}  // namespace millrace
