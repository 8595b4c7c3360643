#include "coordinator/frontend/frontend.h"

#include <utility>

#include "common/check.h"
#include "coordinator/frontend/generate_stream.h"

namespace millrace {

Frontend::Frontend(FrontendOptions options)
    : options_(std::move(options)),
      registry_(options_.drain.on_all_idle),
      encoder_(options_.tokenizer, options_.chat_template) {
  TextWorkerOptions worker;
  worker.tokenizer = options_.tokenizer;
  worker.encoder = &encoder_;
  worker.registry = &registry_;
  worker.clock = options_.clock;
  worker.limits = Limits();
  worker.inbox = options_.inbox;
  worker.slow_client_timeout = options_.slow_client_timeout;
  worker_ = std::make_unique<TextWorker>(worker);

  InferenceServiceOptions inference;
  inference.tokenizer = options_.tokenizer;
  inference.encoder = &encoder_;
  inference.registry = &registry_;
  inference.worker = worker_.get();
  inference.limits = Limits();
  inference.stream.clock = options_.clock;
  inference.stream.max_mailbox_bytes = options_.max_mailbox_bytes;
  inference_ = std::make_unique<InferenceService>(inference);
  control_ = std::make_unique<ControlService>(ControlOptions());
}

Frontend::~Frontend() {
  Stop();
}

RequestLimits Frontend::Limits() const {
  RequestLimits limits;
  limits.vocabulary_size = options_.model.vocabulary_size;
  limits.context_tokens = options_.model.context_tokens;
  limits.has_chat_template = options_.chat_template != nullptr;
  limits.max_input_bytes = options_.max_input_bytes;
  return limits;
}

ControlServiceOptions Frontend::ControlOptions() {
  ControlServiceOptions control;
  control.tokenizer = options_.tokenizer;
  control.registry = &registry_;
  control.clock = options_.clock;
  control.model = options_.model;
  control.fingerprint = options_.fingerprint;
  control.kv_type = options_.kv_type;
  control.weight_bytes = options_.weight_bytes;
  control.has_chat_template = options_.chat_template != nullptr;
  control.version = options_.version;
  control.max_queued_requests = options_.max_queued_requests;
  control.max_running_requests = options_.max_running_requests;
  control.max_input_bytes = options_.max_input_bytes;
  control.drain = options_.drain;
  control.queued_jobs = [worker = worker_.get()] { return worker->queued_jobs(); };
  return control;
}

void Frontend::AddTo(grpc::ServerBuilder* builder) {
  builder->RegisterService(inference_.get());
  builder->RegisterService(control_.get());
  builder->SetMaxReceiveMessageSize(kMaxMessageBytes);
}

void Frontend::SetEngine(EnginePort* engine) {
  engine_ = engine;
  control_->set_engine(engine);
}

void Frontend::Start() {
  MILLRACE_CHECK(engine_ != nullptr);
  worker_->Start(engine_);
}

void Frontend::BeginStop() {
  registry_.Close(RequestRegistry::State::kStopping);
}

void Frontend::CancelAll(const absl::Status& why) {
  for (const std::shared_ptr<GenerateStream>& stream : registry_.All()) stream->RequestEnd(why);
}

bool Frontend::WaitIdle(absl::Duration timeout) const {
  return registry_.WaitIdle(timeout);
}

void Frontend::Stop() {
  BeginStop();
  worker_->Stop();
}

}  // namespace millrace
