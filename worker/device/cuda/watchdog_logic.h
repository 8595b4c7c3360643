// What a watchdog of CUDA shards decides: a state machine that sees no clock, no device and no thread.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace millrace {

// One piece of work of a shard, from its first enqueued op until it is known to be done.
struct WatchedWork {
  uint32_t stage = 0;
  uint64_t microbatch = 0;
  absl::Duration limit = absl::Seconds(30);  // that it may take
};

// What can be seen of one shard at one moment.
struct ShardObservation {
  absl::Status communicator;  // an error that its collectives met on the device
  std::string collective;     // what it last enqueued; empty: nothing yet
};

// Watches until something is wrong, then wants the collectives aborted, then the process ended. Never goes
// back. Thread: one at a time.
class WatchdogLogic {
 public:
  enum class Step { kWatch, kAbort, kEnd };

  // Shards are numbered from 0. After kAbort the process ends once all aborts have returned, or `abort_limit`
  // later.
  WatchdogLogic(uint32_t shards, absl::Duration abort_limit) : shards_(shards), abort_limit_(abort_limit) {}

  // A shard may have several pieces of work; they end in the order in which they began. End without Begin is
  // ignored.
  void Begin(uint32_t shard, WatchedWork work, absl::Time now);
  void End(uint32_t shard);
  // The shard's device failed. The first report counts.
  void Report(uint32_t shard, const absl::Status& status);

  // `observations`: by shard; may be empty. `aborted`: all aborts that kAbort asked for have returned.
  Step Look(absl::Time now, absl::Span<const ShardObservation> observations, bool aborted);

  // One line: stage, shard, collective and microbatch of what is wrong. Empty as long as nothing is.
  const std::string& verdict() const { return verdict_; }

 private:
  struct OpenWork {
    WatchedWork work;
    absl::Time begin;
  };
  struct Shard {
    std::deque<OpenWork> open;
    absl::Status device;
  };
  std::string FindFault(absl::Time now, absl::Span<const ShardObservation> observations) const;
  std::string FindLate(absl::Time now, absl::Span<const ShardObservation> observations) const;
  std::string Describe(size_t shard, absl::Span<const ShardObservation> observations) const;

  std::vector<Shard> shards_;
  const absl::Duration abort_limit_;
  std::string verdict_;
  absl::Time end_ = absl::InfiniteFuture();  // of the time that aborts have
};

}  // namespace millrace
