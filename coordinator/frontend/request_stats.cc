#include "coordinator/frontend/request_stats.h"

namespace millrace {

void RequestStatsRecorder::OnFirstToken(absl::Duration since_arrival) {
  MutexLock lock(&mutex_);
  stats_.first_token.Observe(absl::ToDoubleSeconds(since_arrival));
}

void RequestStatsRecorder::OnNextToken(absl::Duration since_last) {
  MutexLock lock(&mutex_);
  stats_.inter_token.Observe(absl::ToDoubleSeconds(since_last));
}

void RequestStatsRecorder::OnFinished(const SequenceFinished& finished, const absl::Status& status,
                                      absl::Duration since_arrival) {
  MutexLock lock(&mutex_);
  if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) {
    ++stats_.aborted;
  } else if (!status.ok()) {
    ++stats_.failed;
  } else {
    // A stop string may have matched while the sequence ended in another way.
    const bool by_length = finished.status.ok() && finished.reason == FinishReason::kLength;
    ++(by_length ? stats_.length : stats_.stopped);
    stats_.whole.Observe(absl::ToDoubleSeconds(since_arrival));
    stats_.queue.Observe(absl::ToDoubleSeconds(finished.timings.queue));
    stats_.prefill.Observe(absl::ToDoubleSeconds(finished.timings.prefill));
    stats_.decode.Observe(absl::ToDoubleSeconds(finished.timings.decode));
  }
}

RequestStats RequestStatsRecorder::Snapshot() const {
  MutexLock lock(&mutex_);
  return stats_;
}

}  // namespace millrace
