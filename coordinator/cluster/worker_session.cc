#include "coordinator/cluster/worker_session.h"

#include <utility>

#include "common/clock.h"
#include "common/transport/channels.h"

namespace millrace {
namespace {

constexpr size_t kMaxQueued = 1024;

}  // namespace

std::shared_ptr<WorkerSession> WorkerSession::Begin(WorkerId id,
                                                    std::shared_ptr<const WorkerSessionEvents> events) {
  std::shared_ptr<WorkerSession> session(new WorkerSession(id, std::move(events)));
  session->self_ = session;
  session->StartRead(&session->incoming_);
  return session;
}

WorkerSession::WorkerSession(WorkerId id, std::shared_ptr<const WorkerSessionEvents> events)
    : id_(id), events_(std::move(events)) {}

bool WorkerSession::Send(v1::CoordinatorMessage message) {
  {
    MutexLock lock(&mutex_);
    if (ending_ || finished_) return false;
    welcomed_ = welcomed_ || message.has_welcome();
    if (queue_.size() < kMaxQueued) {
      queue_.push_back(std::move(message));
      if (!writing_) {
        writing_ = true;
        StartWrite(&queue_.front());
      }
      return true;
    }
  }
  End(absl::ResourceExhaustedError("the worker does not read its control stream"));
  return false;
}

std::optional<absl::Duration> WorkerSession::clock_offset() const {
  MutexLock lock(&mutex_);
  return clock_.offset();
}

// On the thread that read the message: what a queue adds to the way makes the comparison worse.
void WorkerSession::CompareClocks(const v1::Heartbeat& heartbeat, int64_t received_ns) {
  v1::CoordinatorMessage message;
  message.mutable_clock_answer()->set_heartbeat_sent_ns(heartbeat.sent_ns());
  {
    MutexLock lock(&mutex_);
    if (!welcomed_ || heartbeat.sent_ns() == 0) return;
    if (exchange_.asked_ns != 0 && heartbeat.answered_sent_ns() == exchange_.asked_ns) {
      exchange_.got_answer_ns = heartbeat.answer_received_ns();
      clock_.Add(exchange_);
    }
    exchange_ = {heartbeat.sent_ns(), received_ns, SteadyNanos(), 0};
  }
  Send(std::move(message));
}

void WorkerSession::End(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (ending_ || finished_) return;
  ending_ = true;
  end_status_ = ToPeerStatus(status);
  FinishIfDrained();
}

void WorkerSession::FinishIfDrained() {
  if (finished_ || writing_) return;
  finished_ = true;
  Finish(end_status_);
}

void WorkerSession::OnReadDone(bool ok) {
  if (!ok) return End(absl::OkStatus());
  if (incoming_.has_heartbeat()) CompareClocks(incoming_.heartbeat(), SteadyNanos());
  events_->on_message(self_, std::move(incoming_));
  incoming_.Clear();
  StartRead(&incoming_);
}

void WorkerSession::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  queue_.pop_front();
  if (ok && !queue_.empty()) {
    StartWrite(&queue_.front());
    return;
  }
  writing_ = false;
  if (!ok) queue_.clear();
  if (ending_) FinishIfDrained();
}

void WorkerSession::OnCancel() {
  End(absl::CancelledError("the worker is gone"));
}

void WorkerSession::OnDone() {
  events_->on_gone(id_);
  const std::shared_ptr<WorkerSession> last = std::move(self_);
}

ClusterService::ClusterService(WorkerSessionEvents events, ModelSource* model)
    : events_(std::make_shared<const WorkerSessionEvents>(std::move(events))), model_(model) {}

grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* ClusterService::Join(
    grpc::CallbackServerContext*) {
  return WorkerSession::Begin(WorkerId(next_id_.fetch_add(1)), events_).get();
}

grpc::ServerUnaryReactor* ClusterService::GetModelManifest(grpc::CallbackServerContext* context,
                                                           const v1::ModelManifestRequest*,
                                                           v1::ModelManifest* answer) {
  return model_ == nullptr ? RefuseManifest(context) : model_->SendManifest(context, answer);
}

grpc::ServerWriteReactor<v1::ModelChunk>* ClusterService::FetchModel(grpc::CallbackServerContext* context,
                                                                     const v1::FetchModelRequest* request) {
  return model_ == nullptr ? RefuseChunks() : model_->SendChunks(context, *request);
}

}  // namespace millrace
