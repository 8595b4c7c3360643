// Everything between the clients and the engine.
#pragma once

#include <grpcpp/impl/codegen/service_type.h>
#include <grpcpp/server_builder.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "coordinator/frontend/control_service.h"
#include "coordinator/frontend/inference_service.h"
#include "coordinator/frontend/prompt_encoder.h"
#include "coordinator/frontend/request_registry.h"
#include "coordinator/frontend/text_worker.h"
#include "coordinator/pipeline/engine_port.h"
#include "model/chat_template.h"
#include "model/hyper_parameters.h"
#include "model/tokenizer.h"

namespace millrace {

struct FrontendOptions {
  // The model. The pointers outlive the Frontend.
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: chat is refused
  HyperParameters model;
  std::string fingerprint;
  KvType kv_type = KvType::kF32;
  uint64_t weight_bytes = 0;

  std::string version;
  // The engine's limits, as GetServerInfo tells them.
  uint32_t max_queued_requests = 0;
  uint32_t max_running_requests = 0;

  // Larger inputs are refused with RESOURCE_EXHAUSTED.
  size_t max_input_bytes = size_t{1} << 20;
  // A client that does not read for so long is cancelled.
  absl::Duration slow_client_timeout = absl::Seconds(60);
  // Of events that wait for one client; beyond, it is cancelled.
  size_t max_mailbox_bytes = size_t{16} << 20;
  TextInboxLimits inbox;
  DrainPort drain;

  const Clock* clock = &Clock::Steady();
};

// Owns the two services, the text thread and the state of live requests. Thread: one that starts and stops
// the program, but for sink(), which is the engine's, and the services, which are gRPC's.
//
// Starting: SetEngine, Start, then build the server. Stopping: BeginStop; WaitIdle for the grace time;
// CancelAll; WaitIdle again; Stop; then shut the server down, then the engine. The server is gone before the
// Frontend is.
class Frontend {
 public:
  explicit Frontend(FrontendOptions options);
  ~Frontend();
  Frontend(const Frontend&) = delete;
  Frontend& operator=(const Frontend&) = delete;

  // Requests of more than max_input_bytes but less than this get our answer (RESOURCE_EXHAUSTED with the
  // limit in the message); larger ones get gRPC's own RESOURCE_EXHAUSTED, without details.
  static constexpr int kMaxMessageBytes = (64 << 20) + (1 << 20);
  // Registers both services and sets the message limit.
  void AddTo(grpc::ServerBuilder* builder);

  // Lives until Stop has returned. Before Start.
  void SetEngine(EnginePort* engine);
  void Start();

  TokenSink* sink() { return worker_.get(); }

  // From now on Generate is refused with UNAVAILABLE SHUTTING_DOWN; after a drain, too.
  void BeginStop();
  // Ends every live request with `why`, which is not OK.
  void CancelAll(const absl::Status& why);
  // True once no request is live and no Generate call open; false after `timeout`.
  bool WaitIdle(absl::Duration timeout) const;
  // For monitoring. Thread: any, once the constructor is done.
  RequestStats request_stats() const { return worker_->request_stats(); }
  size_t queued_jobs() const { return worker_->queued_jobs(); }
  size_t live_requests() const { return registry_.live(); }

  // BeginStop, then ends what is left with UNAVAILABLE, without waiting for the engine, and joins the text
  // thread.
  void Stop();

 private:
  RequestLimits Limits() const;
  ControlServiceOptions ControlOptions();

  const FrontendOptions options_;
  RequestRegistry registry_;
  const PromptEncoder encoder_;
  std::unique_ptr<TextWorker> worker_;
  std::unique_ptr<InferenceService> inference_;
  std::unique_ptr<ControlService> control_;
  EnginePort* engine_ = nullptr;
};

}  // namespace millrace
