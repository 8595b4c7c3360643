// How long requests took, and how they ended: what monitoring asks for.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/histogram.h"
#include "common/mutex.h"
#include "coordinator/scheduler/microbatch_plan.h"

namespace millrace {

// Since the process began. All in seconds, as the client sees them: from the arrival of the request, with the
// time spent tokenizing and detokenizing, without the network.
struct RequestStats {
  Histogram first_token{kRequestBounds};
  Histogram inter_token{kTokenBounds};
  // Of requests that ended with OK.
  Histogram whole{kRequestBounds};
  Histogram queue{kRequestBounds};
  Histogram prefill{kRequestBounds};
  Histogram decode{kRequestBounds};
  // How many ended so, of those that came to the engine.
  uint64_t stopped = 0;  // end of sequence, stop string, stop token
  uint64_t length = 0;
  uint64_t aborted = 0;  // cancelled, or past their deadline
  uint64_t failed = 0;   // any other error
};

// Thread: any. Each call takes a lock that is held for an instant.
class RequestStatsRecorder {
 public:
  void OnFirstToken(absl::Duration since_arrival);
  void OnNextToken(absl::Duration since_last);
  // `status` is what the client gets.
  void OnFinished(const SequenceFinished& finished, const absl::Status& status, absl::Duration since_arrival);
  RequestStats Snapshot() const;

 private:
  mutable Mutex mutex_;
  RequestStats stats_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
