#include "coordinator/frontend/generate_stream.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "coordinator/frontend/error_detail.h"
#include "coordinator/frontend/rpc_message.h"

namespace millrace {
namespace {

// The deadline of a call is on the system clock, which may be set; everything of ours is on the steady one.
absl::Time SteadyDeadline(const grpc::CallbackServerContext& context, const Clock& clock) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return clock.Now() + absl::FromChrono(deadline - std::chrono::system_clock::now());
}

}  // namespace

std::shared_ptr<GenerateStream> GenerateStream::Create(SequenceId id, grpc::CallbackServerContext* context,
                                                       RequestRegistry* registry,
                                                       GenerateStreamOptions options,
                                                       EndRequested end_requested) {
  std::shared_ptr<GenerateStream> stream(
      new GenerateStream(id, context, registry, options, std::move(end_requested)));
  registry->StreamOpened();
  MutexLock lock(&stream->mutex_);
  stream->self_ = stream;
  return stream;
}

GenerateStream::GenerateStream(SequenceId id, grpc::CallbackServerContext* context, RequestRegistry* registry,
                               GenerateStreamOptions options, EndRequested end_requested)
    : id_(id),
      deadline_(SteadyDeadline(*context, *options.clock)),
      registry_(registry),
      options_(options),
      on_end_requested_(std::move(end_requested)),
      context_(context) {}

void GenerateStream::Send(v1::GenerateEvent event) {
  const size_t bytes = event.ByteSizeLong();
  bool too_slow = false;
  {
    MutexLock lock(&mutex_);
    MILLRACE_CHECK(!end_.has_value());
    if (client_gone_) return;
    if (!TryMerge(event, bytes)) mailbox_.push_back({std::move(event), bytes});
    mailbox_bytes_ += bytes;
    WriteOrFinish();
    too_slow = mailbox_bytes_ > options_.max_mailbox_bytes;
  }
  if (too_slow) {
    CancelCall(Refusal(absl::StatusCode::kCancelled, "CLIENT_TOO_SLOW",
                       absl::StrCat("the client reads too slowly: more than ", options_.max_mailbox_bytes,
                                    " bytes of events waited for it")));
  }
}

void GenerateStream::End(const absl::Status& status) {
  MutexLock lock(&mutex_);
  MILLRACE_CHECK(!end_.has_value());
  end_ = ToGrpcStatus(status);
  WriteOrFinish();
}

void GenerateStream::RequestEnd(absl::Status why) {
  MILLRACE_CHECK(!why.ok());
  {
    MutexLock lock(&mutex_);
    if (!end_requested_.ok()) return;
    end_requested_ = std::move(why);
  }
  on_end_requested_(id_);
}

absl::Status GenerateStream::end_requested() const {
  MutexLock lock(&mutex_);
  return end_requested_;
}

void GenerateStream::CancelIfStalled(absl::Duration timeout) {
  {
    MutexLock lock(&mutex_);
    const bool waiting = writing_ || finishing_;
    if (!waiting || options_.clock->Now() - waiting_since_ < timeout) return;
  }
  CancelCall(Refusal(absl::StatusCode::kCancelled, "CLIENT_TOO_SLOW",
                     absl::StrCat("the client has not read for ", absl::FormatDuration(timeout))));
}

// A write that is outstanding ends only with the call, so there is no way to send `why`; the owner gets it,
// before OnCancel can give a lesser reason.
void GenerateStream::CancelCall(absl::Status why) {
  RequestEnd(std::move(why));
  MutexLock lock(&mutex_);
  DropMailbox();
  if (context_ != nullptr) context_->TryCancel();
}

void GenerateStream::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  outgoing_.Clear();
  if (!ok) DropMailbox();  // OnCancel tells the owner
  WriteOrFinish();
}

void GenerateStream::OnCancel() {
  {
    MutexLock lock(&mutex_);
    DropMailbox();
  }
  if (options_.clock->Now() >= deadline_) {
    RequestEnd(absl::DeadlineExceededError("the deadline of the call passed"));
  } else {
    RequestEnd(absl::CancelledError("the client cancelled the call or is gone"));
  }
}

void GenerateStream::OnDone() {
  std::shared_ptr<GenerateStream> self;  // may be the last reference: outlives the lock
  {
    MutexLock lock(&mutex_);
    context_ = nullptr;
    self = std::move(self_);
  }
  registry_->StreamClosed();
}

// Only a write that is outstanding leaves events in the mailbox, so this makes fewer messages exactly when
// the client or the network is the slower side.
bool GenerateStream::TryMerge(v1::GenerateEvent& event, size_t bytes) {
  if (mailbox_.empty() || !event.has_tokens() || !mailbox_.back().event.has_tokens()) return false;
  Waiting& last = mailbox_.back();
  if (last.bytes + bytes > options_.max_merged_bytes) return false;
  v1::TokenDelta* into = last.event.mutable_tokens();
  v1::TokenDelta* from = event.mutable_tokens();
  into->mutable_token_ids()->MergeFrom(from->token_ids());
  into->mutable_text()->append(from->text());
  for (v1::PositionLogprobs& position : *from->mutable_logprobs())
    *into->add_logprobs() = std::move(position);
  last.bytes += bytes;
  return true;
}

void GenerateStream::WriteOrFinish() {
  if (writing_ || finishing_) return;
  if (mailbox_.empty()) {
    if (!end_.has_value()) return;
    finishing_ = true;
    waiting_since_ = options_.clock->Now();
    Finish(*end_);
    return;
  }
  outgoing_ = SerializeMessage(mailbox_.front().event);
  mailbox_bytes_ -= mailbox_.front().bytes;
  mailbox_.pop_front();
  waiting_since_ = options_.clock->Now();
  if (mailbox_.empty() && end_.has_value()) {
    finishing_ = true;
    StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), *end_);
    return;
  }
  writing_ = true;
  StartWrite(&outgoing_);
}

void GenerateStream::DropMailbox() {
  client_gone_ = true;
  mailbox_.clear();
  mailbox_bytes_ = 0;
}

}  // namespace millrace
