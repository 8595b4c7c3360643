#include "common/process.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"

namespace millrace {
namespace {

// A SIGTERM for the parent's sake gives no longer to finish.
constexpr int kOrphanMillis = 4500;

const pid_t kParentAtStart = getppid();
std::atomic<bool> dies_with_parent{false};

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

// Version 2 in one file, version 1 in two; a quota of "max" or -1 is none.
size_t CpuQuota(std::istream& quota_file, std::istream& period_file) {
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) return SIZE_MAX;
  return static_cast<size_t>(std::max(1.0, std::ceil(quota / period)));
}

// The first number in a file, or 0: cgroup files say "max" where there is no limit.
uint64_t ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  file >> value;
  return file ? value : 0;
}

uint64_t CgroupHeadroom() {
  static constexpr const char* kPairs[][2] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
  for (const auto& [limit_path, usage_path] : kPairs) {
    const uint64_t limit = ReadNumber(limit_path);
    if (limit == 0 || limit > (uint64_t{1} << 60)) continue;
    return limit - std::min(limit, ReadNumber(usage_path));
  }
  return UINT64_MAX;
}

}  // namespace

void BlockStopSignals() {
  const sigset_t set = StopSignals();
  MILLRACE_CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
}

void DieWithParent() {
  dies_with_parent = true;
  MILLRACE_CHECK(prctl(PR_SET_PDEATHSIG, SIGTERM) == 0);
  if (Orphaned()) raise(SIGTERM);
}

bool Orphaned() {
  return dies_with_parent && getppid() != kParentAtStart;
}

void NameThread(const char* name) {
  MILLRACE_CHECK(pthread_setname_np(pthread_self(), name) == 0);
}

SignalWatcher::SignalWatcher(std::function<void(int)> on_signal) : on_signal_(std::move(on_signal)) {
  BlockStopSignals();
  const sigset_t set = StopSignals();
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  MILLRACE_CHECK(signal_fd_ >= 0 && stop_fd_ >= 0);
  thread_ = std::thread([this] { Watch(); });
}

SignalWatcher::~SignalWatcher() {
  const uint64_t one = 1;
  MILLRACE_CHECK(write(stop_fd_, &one, sizeof(one)) == sizeof(one));
  thread_.join();
  close(signal_fd_);
  close(stop_fd_);
}

void SignalWatcher::Watch() {
  NameThread("signals");
  pollfd fds[2] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
  bool seen = false;
  int limit_ms = -1;
  while (true) {
    const int ready = poll(fds, 2, limit_ms);
    if (ready < 0) continue;
    if (ready == 0) _exit(128 + SIGTERM);
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
    // The parent's end may come right after a signal that parent and child were both sent: that is no second
    // one.
    const bool for_parent = Orphaned() && limit_ms < 0;
    if (for_parent) limit_ms = kOrphanMillis;
    if (seen && !for_parent) _exit(128 + static_cast<int>(info.ssi_signo));
    if (std::exchange(seen, true)) continue;
    on_signal_(static_cast<int>(info.ssi_signo));
  }
}

int64_t ThreadCpuNanos() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

uint64_t AvailableMemoryBytes() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  uint64_t kib = 0;
  while (file >> key >> kib) {
    std::getline(file, unit);
    if (key == "MemAvailable:") return std::min(kib * 1024, CgroupHeadroom());
  }
  return 0;
}

CpuCount CountCpus() {
  CpuCount count;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) count.allowed = CPU_COUNT(&set);
  count.present = static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  return count;
}

std::vector<int> AllowedCores() {
  cpu_set_t set;
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(static_cast<size_t>(core), &set)) cores.push_back(core);
    }
  }
  if (cores.empty()) cores.push_back(0);
  return cores;
}

std::string CoreListText(const std::vector<int>& cores) {
  std::string text;
  for (size_t begin = 0, end; begin < cores.size(); begin = end) {
    end = begin + 1;
    while (end < cores.size() && cores[end] == cores[end - 1] + 1) ++end;
    absl::StrAppend(&text, text.empty() ? "" : ",", cores[begin]);
    if (end - begin > 1) absl::StrAppend(&text, "-", cores[end - 1]);
  }
  return text;
}

size_t CpuTimeLimit() {
  std::ifstream both("/sys/fs/cgroup/cpu.max");
  std::ifstream quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  return std::min(CpuQuota(both, both), CpuQuota(quota, period));
}

std::string MachineIdentity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return boot;
}

void WarnIfConfined(int threads) {
  const CpuCount cpus = CountCpus();
  // The compute threads and the network threads both need a core to run on.
  if (cpus.allowed < std::min(threads + 1, cpus.present)) {
    LogWarning("this process may use ", cpus.allowed, " of ", cpus.present,
               " cores, too few for its threads; under mpirun pass --bind-to none (deploy/mpirun.sh does)");
  }
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

void RaiseFileLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace millrace
