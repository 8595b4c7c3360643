#include "model/merge_queue.h"

namespace millrace {

void MergeQueue::Bucket::Push(uint32_t position) {
  if (ascending.empty() || ascending.back() < position) {
    ascending.push_back(position);
  } else {
    late.push(position);
  }
}

uint32_t MergeQueue::Bucket::Pop() {
  uint32_t position;
  if (taken < ascending.size() && (late.empty() || ascending[taken] <= late.top())) {
    position = ascending[taken++];
  } else {
    position = late.top();
    late.pop();
  }
  if (taken == ascending.size()) {
    ascending.clear();
    taken = 0;
  }
  return position;
}

void MergeQueue::Push(const MergeRule& rule, uint32_t position) {
  const uint32_t next = static_cast<uint32_t>(buckets_.size());
  const auto [entry, inserted] = bucket_of_rank_.try_emplace(rule.rank, next);
  if (inserted) buckets_.emplace_back().rule = rule;
  Bucket& bucket = buckets_[entry->second];
  bucket.Push(position);
  if (!bucket.queued) ranks_.push(uint64_t{rule.rank} << 32 | entry->second);
  bucket.queued = true;
}

std::optional<MergeCandidate> MergeQueue::Pop() {
  while (!ranks_.empty()) {
    Bucket& bucket = buckets_[static_cast<uint32_t>(ranks_.top())];
    if (!bucket.empty()) return MergeCandidate{bucket.rule, bucket.Pop()};
    bucket.queued = false;
    ranks_.pop();
  }
  return std::nullopt;
}

}  // namespace millrace
