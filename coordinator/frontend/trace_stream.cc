#include "coordinator/frontend/trace_stream.h"

#include <chrono>
#include <utility>

#include "coordinator/frontend/rpc_message.h"

namespace millrace {
namespace {

v1::TraceEvent BeginEvent(const PipelineSnapshot& pipeline) {
  v1::TraceEvent event;
  v1::TraceBegin* begin = event.mutable_begin();
  for (const StageSnapshot& stage : pipeline.stages) {
    v1::TraceStage* added = begin->add_stages();
    added->set_worker(stage.worker);
    added->set_first_layer(stage.first_layer);
    added->set_num_layers(stage.num_layers);
  }
  return event;
}

void FillMicrobatch(Epoch epoch, const MicrobatchAccount& account, absl::Time origin,
                    v1::TraceMicrobatch* to) {
  const auto nanos = [origin](absl::Time time) { return absl::ToInt64Nanoseconds(time - origin); };
  const PlannedMicrobatch& planned = account.planned;
  to->set_epoch(epoch.value());
  to->set_microbatch_id(planned.id.value());
  to->set_planned_ns(nanos(planned.time));
  to->set_returned_ns(nanos(account.returned));
  to->set_in_flight(planned.in_flight);
  to->set_live_requests(planned.live_sequences);
  to->set_requests(planned.segments);
  to->set_rows(planned.rows);
  to->set_decode_rows(planned.decode_rows);
  for (const StageVisit& visit : account.visits) {
    v1::TraceVisit* added = to->add_visits();
    if (!visit.known) continue;
    added->set_received_ns(nanos(visit.received));
    added->set_started_ns(nanos(visit.started));
    added->set_ended_ns(nanos(visit.ended));
    added->set_sent_ns(nanos(visit.sent));
    added->set_preempted_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(visit.preempted)));
    for (absl::Duration idle : visit.idle.by_cause) {
      added->add_idle_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(idle)));
    }
  }
}

}  // namespace

TraceStream::TraceStream(TraceStreamOptions options) : options_(std::move(options)) {
  ++*options_.running;
}

TraceStream::~TraceStream() {
  --*options_.running;
}

std::shared_ptr<TraceStream> TraceStream::Begin(const PipelineSnapshot& pipeline,
                                                TraceStreamOptions options) {
  std::shared_ptr<TraceStream> stream(new TraceStream(std::move(options)));
  const std::weak_ptr<TraceStream> weak = stream;
  // Weak, as the alarm keeps the function for as long as the stream keeps the alarm.
  stream->alarm_.Set(std::chrono::system_clock::now() + absl::ToChronoNanoseconds(stream->options_.length),
                     [weak](bool /*ok*/) {
                       if (const std::shared_ptr<TraceStream> alive = weak.lock()) alive->OnTimeUp();
                     });
  MutexLock lock(&stream->mutex_);
  stream->self_ = stream;
  stream->waiting_ = BeginEvent(pipeline);
  stream->WriteOrFinish();
  return stream;
}

void TraceStream::OnMicrobatch(Epoch epoch, const MicrobatchAccount& account) {
  MutexLock lock(&mutex_);
  if (time_up_ || gone_) return;
  if (waiting_.has_value() &&
      static_cast<size_t>(waiting_->microbatches().microbatches_size()) >= options_.max_waiting) {
    end_.set_missed(end_.missed() + 1);
    return;
  }
  end_.set_microbatches(end_.microbatches() + 1);
  if (!waiting_.has_value()) waiting_.emplace();
  FillMicrobatch(epoch, account, options_.now, waiting_->mutable_microbatches()->add_microbatches());
  WriteOrFinish();
}

void TraceStream::WriteOrFinish() {
  if (writing_ || finished_) return;
  if (gone_) {
    finished_ = true;
    return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the client has gone"));
  }
  if (!waiting_.has_value() && time_up_ && !end_written_) {
    end_written_ = true;
    *waiting_.emplace().mutable_end() = end_;
  }
  if (waiting_.has_value()) {
    writing_ = true;
    outgoing_ = SerializeMessage(*waiting_);
    waiting_.reset();
    StartWrite(&outgoing_);
  } else if (end_written_) {
    finished_ = true;
    Finish(grpc::Status::OK);
  }
}

void TraceStream::OnTimeUp() {
  MutexLock lock(&mutex_);
  time_up_ = true;
  WriteOrFinish();
}

void TraceStream::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  gone_ = gone_ || !ok;
  WriteOrFinish();
}

void TraceStream::OnCancel() {
  MutexLock lock(&mutex_);
  gone_ = true;
  WriteOrFinish();
}

void TraceStream::OnDone() {
  alarm_.Cancel();
  std::shared_ptr<TraceStream> self;  // given up after the lock
  MutexLock lock(&mutex_);
  self.swap(self_);
}

}  // namespace millrace
