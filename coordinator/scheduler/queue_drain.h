// How fast the queue drains, so that who finds it full can be told when to come back.
#pragma once

#include <cstdint>
#include <deque>

#include "absl/time/time.h"

namespace millrace {

// Thread: engine.
class QueueDrain {
 public:
  static constexpr absl::Duration kLeastPause = absl::Milliseconds(100);
  static constexpr absl::Duration kLongestPause = absl::Seconds(60);

  // A request waits where none did: what was before says nothing about now.
  void OnFirstQueued(absl::Time now);
  void OnAdmitted(absl::Time now);

  // The time in which as many as wait now would be admitted at the rate of the last 64 admissions, or of
  // those since requests began to wait; within the bounds above. Without an admission yet, as if one came
  // now.
  absl::Duration RetryAfter(uint32_t waiting, absl::Time now) const;

 private:
  std::deque<absl::Time> marks_;  // the beginning, then admissions
};

}  // namespace millrace
