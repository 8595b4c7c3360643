#include "worker/device/cuda/watchdog_logic.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"

namespace millrace {

void WatchdogLogic::Begin(uint32_t shard, WatchedWork work, absl::Time now) {
  MILLRACE_CHECK(shard < shards_.size());
  shards_[shard].open.push_back({std::move(work), now});
}

void WatchdogLogic::End(uint32_t shard) {
  MILLRACE_CHECK(shard < shards_.size());
  if (!shards_[shard].open.empty()) shards_[shard].open.pop_front();
}

void WatchdogLogic::Report(uint32_t shard, const absl::Status& status) {
  MILLRACE_CHECK(shard < shards_.size());
  shards_[shard].device.Update(status);
}

WatchdogLogic::Step WatchdogLogic::Look(absl::Time now, absl::Span<const ShardObservation> observations,
                                        bool aborted) {
  MILLRACE_CHECK(observations.empty() || observations.size() == shards_.size());
  if (verdict_.empty()) {
    verdict_ = FindFault(now, observations);
    if (verdict_.empty()) return Step::kWatch;
    end_ = now + abort_limit_;
    return Step::kAbort;
  }
  return aborted || now >= end_ ? Step::kEnd : Step::kAbort;
}

// What a device itself reports comes first: a lost device makes the collectives of all shards fail, and a
// failed collective makes work late.
std::string WatchdogLogic::FindFault(absl::Time now, absl::Span<const ShardObservation> observations) const {
  for (size_t i = 0; i < shards_.size(); ++i) {
    if (shards_[i].device.ok()) continue;
    return absl::StrCat(Describe(i, observations), ": ", shards_[i].device.message());
  }
  for (size_t i = 0; i < observations.size(); ++i) {
    if (observations[i].communicator.ok()) continue;
    return absl::StrCat(Describe(i, observations), ": ", observations[i].communicator.message());
  }
  return FindLate(now, observations);
}

// Shards that wait for one that hangs are late as well: all are named.
std::string WatchdogLogic::FindLate(absl::Time now, absl::Span<const ShardObservation> observations) const {
  std::vector<std::string> late;
  for (size_t i = 0; i < shards_.size(); ++i) {
    if (shards_[i].open.empty()) continue;
    const OpenWork& oldest = shards_[i].open.front();
    if (now - oldest.begin < oldest.work.limit) continue;
    late.push_back(absl::StrCat(Describe(i, observations), ": not done after ",
                                absl::FormatDuration(oldest.work.limit)));
  }
  return absl::StrJoin(late, "; ");
}

std::string WatchdogLogic::Describe(size_t shard, absl::Span<const ShardObservation> observations) const {
  std::string text;
  if (!shards_[shard].open.empty()) {
    const WatchedWork& work = shards_[shard].open.front().work;
    absl::StrAppend(&text, "stage ", work.stage, ", microbatch ", work.microbatch, ", ");
  }
  absl::StrAppend(&text, "shard ", shard);
  if (shard < observations.size()) {
    const std::string& collective = observations[shard].collective;
    absl::StrAppend(&text, ", last collective: ", collective.empty() ? "none" : collective);
  }
  return text;
}

}  // namespace millrace
