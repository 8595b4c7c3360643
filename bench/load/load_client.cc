#include "bench/load/load_client.h"

#include <chrono>
#include <utility>

#include "common/clock.h"
#include "common/transport/channels.h"

namespace millrace::bench {
namespace {

std::chrono::system_clock::time_point DeadlineIn(absl::Duration wait) {
  return std::chrono::system_clock::now() + absl::ToChronoNanoseconds(std::max(wait, absl::ZeroDuration()));
}

}  // namespace

struct LoadClient::Stream {
  enum class State { kStarting, kReading, kFinishing };
  State state = State::kStarting;
  StreamRecord record;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateEvent>> reader;
  v1::GenerateEvent event;
  grpc::Status status;
};

LoadClient::LoadClient(std::shared_ptr<grpc::Channel> channel, Callbacks callbacks)
    : callbacks_(std::move(callbacks)),
      inference_(v1::Inference::NewStub(channel)),
      control_(v1::Control::NewStub(channel)) {}

LoadClient::~LoadClient() {
  CancelAll();
  Poll(Clock::Steady().Now() + kDrain, [this] { return streams_.empty(); });
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.AsyncNext(&tag, &ok, DeadlineIn(kDrain)) == grpc::CompletionQueue::GOT_EVENT) {
  }
  for (Stream* stream : streams_) delete stream;
}

void LoadClient::Start(v1::GenerateRequest request) {
  Stream* stream = new Stream;
  streams_.insert(stream);
  stream->record.request = std::move(request);
  stream->record.sent = Clock::Steady().Now();
  stream->reader = inference_->AsyncGenerate(&stream->context, stream->record.request, &queue_, stream);
}

void LoadClient::Handle(Stream* stream, bool ok) {
  if (stream->state == Stream::State::kFinishing) {
    callbacks_.on_done(stream->record, stream->status);
    streams_.erase(stream);
    delete stream;
    return;
  }
  if (!ok) {
    stream->state = Stream::State::kFinishing;
    stream->reader->Finish(&stream->status, stream);
    return;
  }
  if (stream->state == Stream::State::kReading && stream->event.has_tokens()) {
    StreamRecord& record = stream->record;
    const v1::TokenDelta& delta = stream->event.tokens();
    const absl::Time now = Clock::Steady().Now();
    callbacks_.on_tokens({record, delta, now});
    if (record.tokens == 0) record.first_token = now;
    record.last_token = now;
    record.tokens += static_cast<uint32_t>(delta.token_ids_size());
    record.token_ids.insert(record.token_ids.end(), delta.token_ids().begin(), delta.token_ids().end());
  }
  stream->state = Stream::State::kReading;
  stream->reader->Read(&stream->event, stream);
}

void LoadClient::Poll(absl::Time until, const std::function<bool()>& done) {
  while (!done()) {
    const absl::Duration left = until - Clock::Steady().Now();
    if (left <= absl::ZeroDuration()) return;
    void* tag = nullptr;
    bool ok = false;
    if (queue_.AsyncNext(&tag, &ok, DeadlineIn(left)) != grpc::CompletionQueue::GOT_EVENT) return;
    Handle(static_cast<Stream*>(tag), ok);
  }
}

void LoadClient::CancelAll() {
  for (Stream* stream : streams_) stream->context.TryCancel();
}

absl::StatusOr<v1::GetLoadResponse> LoadClient::Load() {
  grpc::ClientContext context;
  context.set_deadline(DeadlineIn(kCallTimeout));
  v1::GetLoadResponse response;
  const grpc::Status status = control_->GetLoad(&context, {}, &response);
  if (!status.ok()) return FromPeerStatus(status);
  return response;
}

absl::StatusOr<v1::GetModelInfoResponse> LoadClient::ModelInfo() {
  grpc::ClientContext context;
  context.set_deadline(DeadlineIn(kCallTimeout));
  v1::GetModelInfoResponse response;
  const grpc::Status status = control_->GetModelInfo(&context, {}, &response);
  if (!status.ok()) return FromPeerStatus(status);
  return response;
}

}  // namespace millrace::bench
