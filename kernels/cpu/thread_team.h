// Threads that share the work of one call at a time, for ops that take a few microseconds and follow each
// other closely: forking and joining two threads that are awake takes less than two microseconds.
//
// Shares are claimed one by one by whichever thread is free, the caller included, so a helper that another
// process keeps from running costs nothing until it holds a share. Who waits spins for a moment and then
// sleeps in the kernel, so that a helper that is due gets the core of one that only waits.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/work_share.h"

namespace millrace::kernels {

// Thread: one caller at a time.
class ThreadTeam {
 public:
  static constexpr size_t kMaxThreads = 1024;

  // A team of `threads`, the caller and threads - 1 helpers called compute-1, compute-2, ... With `cores`,
  // helper i runs on cores[i % cores.size()] only, and cores[0] is the caller's (PinCaller).
  // INVALID_ARGUMENT: no threads, more than kMaxThreads, or a core this process may not use.
  // RESOURCE_EXHAUSTED: the system gives no more threads.
  static absl::StatusOr<std::unique_ptr<ThreadTeam>> Create(size_t threads, std::vector<int> cores);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  size_t threads() const { return helpers_.size() + 1; }

  // Confines the calling thread, and those it starts later, to cores[0]. Does nothing without cores.
  void PinCaller() const;

  // Calls fn(WorkShare{i, count}) once for each i < count, on any of the threads, and returns when all calls
  // have. What a call wrote is visible to the caller. Allocates nothing. `fn` must not throw, or call Run.
  template <class Fn>
  void Run(size_t count, const Fn& fn) {
    if (count <= 1 || helpers_.empty()) {
      for (size_t i = 0; i < count; ++i) fn(WorkShare{i, count});
      return;
    }
    const auto call = [](const void* context, WorkShare share) { (*static_cast<const Fn*>(context))(share); };
    RunTask({call, &fn, count});
  }

 private:
  static constexpr uint32_t kStop = UINT32_MAX;

  struct Task {
    void (*call)(const void* context, WorkShare share) = nullptr;
    const void* context = nullptr;
    size_t count = 0;
  };

  explicit ThreadTeam(std::vector<int> cores) : cores_(std::move(cores)) {}
  void RunTask(const Task& task);
  bool RunOneShare();
  void AwaitTheOthers();
  void Help(size_t index);
  bool AwaitWork();

  // Shares of the task that nobody has claimed, of which the last is claimed next; kStop: the helpers are to
  // end. A helper sleeps on it while it is 0. task_ is written while it is 0 and nothing is unfinished, and
  // read only by who has claimed a share.
  alignas(64) std::atomic<uint32_t> unclaimed_{0};
  Task task_;
  // Shares that have not been done. The caller sleeps on it while it is not 0.
  alignas(64) std::atomic<uint32_t> unfinished_{0};
  alignas(64) std::atomic<uint32_t> sleeping_helpers_{0};
  std::atomic<bool> caller_sleeps_{false};

  const std::vector<int> cores_;
  std::vector<std::thread> helpers_;
};

}  // namespace millrace::kernels
