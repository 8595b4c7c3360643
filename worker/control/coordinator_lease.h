// How long a worker goes on without a word from its coordinator.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/bounded_queue.h"

namespace millrace {

// Silence as this process could notice it: what passes between two ticks counts as two steps at most, so that
// a process that was itself stopped, or starved of a core, does not take its own absence for the other's.
class SilenceMeter {
 public:
  // Ticks are to come each `step`.
  SilenceMeter(absl::Duration step, absl::Time now) : step_(step), last_tick_(now) {}
  // The silence up to now; `heard`: since the last tick something came.
  absl::Duration Tick(bool heard, absl::Time now);

 private:
  const absl::Duration step_;
  absl::Time last_tick_;
  absl::Duration silence_;
};

// A thread of its own, as the control thread may be loading weights. The coordinator answers each heartbeat
// at once, so that it is never silent for long while it lives and can be reached.
class CoordinatorLease {
 public:
  // `on_over` is called once, when nothing was heard for `timeout`. Thread: lease.
  CoordinatorLease(absl::Duration timeout, std::function<void()> on_over);
  ~CoordinatorLease();  // ends the thread without a call
  CoordinatorLease(const CoordinatorLease&) = delete;
  CoordinatorLease& operator=(const CoordinatorLease&) = delete;

  void Heard() { heard_.store(true, std::memory_order_relaxed); }  // Thread: any

 private:
  void Watch();

  const absl::Duration timeout_;
  const std::function<void()> on_over_;
  std::atomic<bool> heard_{false};
  BoundedQueue<int> stop_{1};
  std::thread thread_;
};

// Ends the process with a line in the log and kExitCoordinatorLost, from the lease's thread, as the others
// may be busy or wait for what does not come.
[[noreturn]] void EndInSilence(const std::string& coordinator, absl::Duration timeout);

// Why a worker ends whose control stream to `coordinator` ended with `how`.
absl::Status WhyItEnds(const std::string& coordinator, const absl::Status& how);
// The exit code that goes with how RunWorker ended.
int WorkerExitCode(const absl::Status& status);

}  // namespace millrace
