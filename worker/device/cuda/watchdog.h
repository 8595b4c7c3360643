// Ends the process when CUDA work fails or never ends, so that nobody waits for it.
//
// A kernel that hangs cannot be stopped from outside, and a device that failed stays unusable for the process
// (CUDA runtime, "sticky" errors). So a worker does not try to go on: it says what happened, tries for a
// moment to stop its collectives, and ends; the coordinator sees a lost worker.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "worker/device/cuda/watchdog_logic.h"

namespace millrace {

// Collectives as a watchdog sees them. Thread: any, several at a time.
class WatchedCollectives {
 public:
  virtual ~WatchedCollectives() = default;
  virtual absl::Status AsyncError(uint32_t shard) = 0;   // that the device met; does not wait
  virtual std::string LastEnqueued(uint32_t shard) = 0;  // for people
  virtual void Abort(uint32_t shard) = 0;                // may hang
};

// Aborts all shards, each in a thread of its own, and waits `limit` at most. Threads that hang are left
// behind, with what they hold. Returns whether all have returned.
bool AbortWithin(const std::shared_ptr<WatchedCollectives>& collectives, uint32_t shards,
                 absl::Duration limit);

struct WatchdogOptions {
  uint32_t shards = 1;
  absl::Duration period = absl::Milliseconds(100);  // between looks
  absl::Duration abort_limit = absl::Seconds(2);
  const Clock* clock = &Clock::Steady();
  // Ends the process, without destructors, which would wait for the device; tests put something else here.
  std::function<void()> end_process;
};

// One for the shards of a worker; outlives the collectives and the work that it watches. Thread: any.
class CudaWatchdog {
 public:
  // By default the process ends with kExitDeviceLost.
  explicit CudaWatchdog(WatchdogOptions options);
  ~CudaWatchdog();
  CudaWatchdog(const CudaWatchdog&) = delete;
  CudaWatchdog& operator=(const CudaWatchdog&) = delete;

  // As WatchdogLogic.
  void Begin(uint32_t shard, WatchedWork work);
  void End(uint32_t shard);
  void Report(uint32_t shard, const absl::Status& status);

  void Watch(std::shared_ptr<WatchedCollectives> collectives);
  // Those that were aborted, or are being, stay so.
  void Unwatch(const WatchedCollectives* collectives);

 private:
  void Run();
  std::vector<std::shared_ptr<WatchedCollectives>> Watched();
  std::vector<ShardObservation> Observe();
  void EndProcess();

  const WatchdogOptions options_;
  Mutex mutex_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool reported_ ABSL_GUARDED_BY(mutex_) = false;
  WatchdogLogic logic_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<WatchedCollectives>> watched_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace millrace
