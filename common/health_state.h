// What a process says about its own health: whether it lives, has started, and is ready for work.
#pragma once

#include <functional>
#include <list>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"

namespace millrace {

// Names of the health services (grpc.health.v1), which probes ask for.
inline constexpr char kLivenessService[] = "liveness";
inline constexpr char kStartupService[] = "startup";
inline constexpr char kReadinessService[] = "readiness";

// A loop that ticks waits for work no longer than this at a time.
inline constexpr absl::Duration kLongestLoopWait = absl::Seconds(1);

// Thread: any, for everything here.
class HealthState {
 public:
  // `stuck_after`: how long a loop may go without a tick before the process counts as stuck.
  explicit HealthState(absl::Duration stuck_after = absl::Seconds(60), const Clock* clock = &Clock::Steady());
  HealthState(const HealthState&) = delete;
  HealthState& operator=(const HealthState&) = delete;

  // One loop of the process. From its construction to its end, it has to tick; liveness tells when it does
  // not.
  class Loop {
   public:
    // `health` outlives this; null: nobody asks, and ticks do nothing.
    Loop(HealthState* health, std::string name);
    ~Loop();
    Loop(const Loop&) = delete;
    Loop& operator=(const Loop&) = delete;
    // Once a turn, and between the parts of a turn that may take long.
    void Tick();

   private:
    HealthState* const health_;
    std::list<std::pair<std::string, absl::Time>>::iterator entry_;
  };

  // Files are checked and listeners are open. Stays so.
  void SetStarted();
  // Coordinator: a token went round the present ring. Worker: its stage is loaded and activated.
  void SetReady(bool ready);
  // While this holds the process is not ready, whatever SetReady said.
  void SetDraining(bool draining);

  // Every loop ticks. Never depends on other processes.
  bool live() const;
  bool started() const;
  bool ready() const;
  // Names of loops that do not tick, for the log.
  std::vector<std::string> StuckLoops() const;

  enum class Answer { kServing, kNotServing, kUnknownService };
  // For one of the services above, or "", which is readiness.
  Answer Ask(absl::string_view service) const;

  // Called with ready() when that has changed, on the thread that changed it, one call at a time. It must not
  // change this object. At most one watcher; null: none.
  void OnReadyChange(std::function<void(bool)> watcher);

 private:
  bool ReadyLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return started_ && ready_ && !draining_; }
  void TellWatcher();

  const absl::Duration stuck_after_;
  const Clock* const clock_;
  mutable Mutex mutex_;
  std::list<std::pair<std::string, absl::Time>> loops_ ABSL_GUARDED_BY(mutex_);  // and their last ticks
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  Mutex watcher_mutex_;  // taken before mutex_
  std::function<void(bool)> watcher_ ABSL_GUARDED_BY(watcher_mutex_);
  bool told_ ABSL_GUARDED_BY(watcher_mutex_) = false;
};

}  // namespace millrace
