#include "coordinator/scheduler/queue_drain.h"

#include <algorithm>
#include <cstddef>

namespace millrace {
namespace {

constexpr size_t kMostMarks = 65;

}  // namespace

void QueueDrain::OnFirstQueued(absl::Time now) {
  marks_.assign(1, now);
}

void QueueDrain::OnAdmitted(absl::Time now) {
  marks_.push_back(now);
  if (marks_.size() > kMostMarks) marks_.pop_front();
}

absl::Duration QueueDrain::RetryAfter(uint32_t waiting, absl::Time now) const {
  if (marks_.empty()) return kLeastPause;
  const double admitted = static_cast<double>(std::max<size_t>(1, marks_.size() - 1));
  return std::clamp((now - marks_.front()) * (waiting / admitted), kLeastPause, kLongestPause);
}

}  // namespace millrace
