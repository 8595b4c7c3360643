#include "coordinator/frontend/text_inbox.h"

#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/frontend/error_detail.h"

namespace millrace {

absl::Status TextInbox::PushJob(TextJob&& job) {
  MutexLock lock(&mutex_);
  if (closed_) {
    return RetryLater(absl::StatusCode::kUnavailable, "SHUTTING_DOWN",
                      "the server is stopping and takes no new requests; retry with back-off");
  }
  if (jobs_.size() >= limits_.max_jobs || job.input_bytes > limits_.max_job_bytes - job_bytes_) {
    return RetryLater(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                      absl::StrCat("too much waits to be tokenized: ", jobs_.size(), " requests of ",
                                   job_bytes_, " bytes; the limits are ", limits_.max_jobs, " and ",
                                   limits_.max_job_bytes, "; retry after a pause"));
  }
  job_bytes_ += job.input_bytes;
  jobs_.push_back(std::move(job));
  changed_.NotifyOne();
  return absl::OkStatus();
}

void TextInbox::PushActions(std::vector<SchedulerAction> actions) {
  MutexLock lock(&mutex_);
  if (closed_ || actions.empty()) return;
  pending_actions_.fetch_add(actions.size(), std::memory_order_acq_rel);
  if (actions_.empty()) {
    actions_ = std::move(actions);
  } else {
    actions_.insert(actions_.end(), std::make_move_iterator(actions.begin()),
                    std::make_move_iterator(actions.end()));
  }
  changed_.NotifyOne();
}

void TextInbox::PushEndRequest(SequenceId id) {
  MutexLock lock(&mutex_);
  if (closed_) return;
  end_requests_.push_back(id);
  changed_.NotifyOne();
}

TextInbox::Batch TextInbox::Take(absl::Duration timeout) {
  Batch batch;
  MutexLock lock(&mutex_);
  if (actions_.empty() && end_requests_.empty() && jobs_.empty() && !closed_)
    changed_.WaitFor(&mutex_, timeout);
  batch.actions.swap(actions_);
  batch.end_requests.swap(end_requests_);
  if (!jobs_.empty()) {
    batch.job = std::move(jobs_.front());
    jobs_.pop_front();
    job_bytes_ -= batch.job->input_bytes;
  }
  batch.closed = closed_;
  return batch;
}

void TextInbox::Close() {
  MutexLock lock(&mutex_);
  closed_ = true;
  changed_.NotifyOne();
}

size_t TextInbox::jobs() const {
  MutexLock lock(&mutex_);
  return jobs_.size();
}

}  // namespace millrace
