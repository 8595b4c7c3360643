#include "kernels/cpu/thread_team.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <cstdio>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace::kernels {
namespace {

// About what it costs to be woken.
constexpr std::chrono::microseconds kSpin{50};
constexpr int kPausesBetweenLooks = 32;  // at the clock, which costs more than a pause

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "the kernel looks at these words itself");

// Sleeps unless `word` is something other than `expected`; may also return for no reason.
void SleepWhile(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void Wake(std::atomic<uint32_t>& word, int threads) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `done` came true within kSpin.
template <class Done>
bool SpinUntil(const Done& done) {
  std::chrono::steady_clock::time_point end;
  for (bool first = true;; first = false) {
    for (int i = 0; i < kPausesBetweenLooks; ++i) {
      if (done()) return true;
      Pause();
    }
    const auto now = std::chrono::steady_clock::now();
    if (first) {
      end = now + kSpin;
    } else if (now >= end) {
      return false;
    }
  }
}

bool Pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(core), &set);
  return sched_setaffinity(0, sizeof(set), &set) == 0;
}

absl::Status CheckCores(const std::vector<int>& cores) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof(allowed), &allowed);
  for (const int core : cores) {
    if (core < 0 || core >= CPU_SETSIZE || !CPU_ISSET(static_cast<size_t>(core), &allowed)) {
      return absl::InvalidArgumentError(absl::StrCat("this process may not use core ", core));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ThreadTeam>> ThreadTeam::Create(size_t threads, std::vector<int> cores) {
  if (threads < 1 || threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat(threads, " threads asked for; there can be 1 to ", kMaxThreads));
  }
  const absl::Status usable = CheckCores(cores);
  if (!usable.ok()) return usable;
  std::unique_ptr<ThreadTeam> team(new ThreadTeam(std::move(cores)));
  team->helpers_.reserve(threads - 1);
  try {
    for (size_t i = 1; i < threads; ++i)
      team->helpers_.emplace_back([team = team.get(), i] { team->Help(i); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("thread ", team->helpers_.size() + 1, " of ", threads, ": ", error.what()));
  }
  return team;
}

ThreadTeam::~ThreadTeam() {
  unclaimed_.store(kStop);
  Wake(unclaimed_, INT_MAX);
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadTeam::PinCaller() const {
  if (!cores_.empty()) Pin(cores_[0]);
}

// All stores that somebody may be asleep over, and the loads that tell whether somebody is, are sequentially
// consistent: of who writes the word and who is about to sleep on it, at least one sees the other.
void ThreadTeam::RunTask(const Task& task) {
  const uint32_t count = static_cast<uint32_t>(task.count);
  task_ = task;
  unfinished_.store(count, std::memory_order_relaxed);
  unclaimed_.store(count);
  if (sleeping_helpers_.load() != 0) Wake(unclaimed_, static_cast<int>(count - 1));
  while (RunOneShare()) {
  }
  AwaitTheOthers();
}

bool ThreadTeam::RunOneShare() {
  uint32_t left = unclaimed_.load(std::memory_order_relaxed);
  do {
    if (left == 0 || left == kStop) return false;
  } while (!unclaimed_.compare_exchange_weak(left, left - 1, std::memory_order_acquire,
                                             std::memory_order_relaxed));
  task_.call(task_.context, WorkShare{left - 1, task_.count});
  if (unfinished_.fetch_sub(1) == 1 && caller_sleeps_.load()) Wake(unfinished_, 1);
  return true;
}

void ThreadTeam::AwaitTheOthers() {
  if (SpinUntil([this] { return unfinished_.load(std::memory_order_acquire) == 0; })) return;
  caller_sleeps_.store(true);
  while (const uint32_t left = unfinished_.load()) SleepWhile(unfinished_, left);
  caller_sleeps_.store(false);
}

void ThreadTeam::Help(size_t index) {
  char name[16];
  std::snprintf(name, sizeof(name), "compute-%u", static_cast<unsigned>(index % kMaxThreads));
  pthread_setname_np(pthread_self(), name);
  if (!cores_.empty()) Pin(cores_[index % cores_.size()]);
  while (AwaitWork()) RunOneShare();
}

bool ThreadTeam::AwaitWork() {
  const auto called = [this] { return unclaimed_.load(std::memory_order_relaxed) != 0; };
  if (!SpinUntil(called)) {
    sleeping_helpers_.fetch_add(1);
    while (unclaimed_.load() == 0) SleepWhile(unclaimed_, 0);
    sleeping_helpers_.fetch_sub(1);
  }
  return unclaimed_.load(std::memory_order_relaxed) != kStop;
}

}  // namespace millrace::kernels
