#include "worker/device/cuda/watchdog.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "common/options.h"
#include "common/process.h"

namespace millrace {
namespace {

// Aborts that are under way. Threads that never come back keep it.
struct Aborts {
  Mutex mutex;
  CondVar changed;
  uint32_t running ABSL_GUARDED_BY(mutex) = 0;
};

void StartAborts(const std::shared_ptr<WatchedCollectives>& collectives, uint32_t shards,
                 const std::shared_ptr<Aborts>& aborts) {
  {
    MutexLock lock(&aborts->mutex);
    aborts->running += shards;
  }
  for (uint32_t shard = 0; shard < shards; ++shard) {
    std::thread([collectives, shard, aborts] {
      NameThread("cuda-abort");
      collectives->Abort(shard);
      MutexLock lock(&aborts->mutex);
      --aborts->running;
      aborts->changed.NotifyAll();
    }).detach();
  }
}

bool WaitFor(Aborts& aborts, absl::Duration limit) {
  const Clock& clock = Clock::Steady();
  const absl::Time end = clock.Now() + limit;
  MutexLock lock(&aborts.mutex);
  while (aborts.running != 0) {
    const absl::Duration left = end - clock.Now();
    if (left <= absl::ZeroDuration()) return false;
    aborts.changed.WaitFor(&aborts.mutex, left);
  }
  return true;
}

}  // namespace

bool AbortWithin(const std::shared_ptr<WatchedCollectives>& collectives, uint32_t shards,
                 absl::Duration limit) {
  const auto aborts = std::make_shared<Aborts>();
  StartAborts(collectives, shards, aborts);
  return WaitFor(*aborts, limit);
}

CudaWatchdog::CudaWatchdog(WatchdogOptions options)
    : options_(std::move(options)), logic_(options_.shards, options_.abort_limit) {
  thread_ = std::thread([this] {
    NameThread("cuda-watchdog");
    Run();
  });
}

CudaWatchdog::~CudaWatchdog() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void CudaWatchdog::Begin(uint32_t shard, WatchedWork work) {
  const absl::Time now = options_.clock->Now();
  MutexLock lock(&mutex_);
  logic_.Begin(shard, std::move(work), now);
}

void CudaWatchdog::End(uint32_t shard) {
  MutexLock lock(&mutex_);
  logic_.End(shard);
}

void CudaWatchdog::Report(uint32_t shard, const absl::Status& status) {
  if (status.ok()) return;
  MutexLock lock(&mutex_);
  logic_.Report(shard, status);
  reported_ = true;
  changed_.NotifyAll();
}

void CudaWatchdog::Watch(std::shared_ptr<WatchedCollectives> collectives) {
  MutexLock lock(&mutex_);
  watched_.push_back(std::move(collectives));
}

void CudaWatchdog::Unwatch(const WatchedCollectives* collectives) {
  MutexLock lock(&mutex_);
  std::erase_if(watched_, [&](const auto& watched) { return watched.get() == collectives; });
}

std::vector<std::shared_ptr<WatchedCollectives>> CudaWatchdog::Watched() {
  MutexLock lock(&mutex_);
  return watched_;
}

// Looked at without the lock: shards that begin work do not wait for the driver.
std::vector<ShardObservation> CudaWatchdog::Observe() {
  std::vector<ShardObservation> observations;
  for (const std::shared_ptr<WatchedCollectives>& watched : Watched()) {
    observations.resize(options_.shards);
    for (uint32_t shard = 0; shard < options_.shards; ++shard) {
      observations[shard].communicator.Update(watched->AsyncError(shard));
      observations[shard].collective = watched->LastEnqueued(shard);
    }
  }
  return observations;
}

void CudaWatchdog::Run() {
  for (;;) {
    {
      MutexLock lock(&mutex_);
      if (!stop_ && !reported_) changed_.WaitFor(&mutex_, options_.period);
      // What was reported before the end counts.
      if (stop_ && !reported_) return;
      reported_ = false;
    }
    const std::vector<ShardObservation> observations = Observe();
    MutexLock lock(&mutex_);
    if (logic_.Look(options_.clock->Now(), observations, false) != WatchdogLogic::Step::kWatch) break;
  }
  EndProcess();
}

void CudaWatchdog::EndProcess() {
  {
    MutexLock lock(&mutex_);
    LogError("CUDA work failed: ", logic_.verdict(), "; ending the process with exit code ", kExitDeviceLost);
  }
  const auto aborts = std::make_shared<Aborts>();
  for (const std::shared_ptr<WatchedCollectives>& watched : Watched()) {
    StartAborts(watched, options_.shards, aborts);
  }
  bool aborted = false;
  for (WatchdogLogic::Step step = WatchdogLogic::Step::kAbort; step != WatchdogLogic::Step::kEnd;) {
    aborted = WaitFor(*aborts, std::min(options_.period, options_.abort_limit));
    MutexLock lock(&mutex_);
    step = logic_.Look(options_.clock->Now(), {}, aborted);
  }
  if (!aborted) {
    LogError("collectives could not be aborted within ", absl::FormatDuration(options_.abort_limit));
  }
  if (options_.end_process) return options_.end_process();
  _exit(kExitDeviceLost);
}

}  // namespace millrace
