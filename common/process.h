// What a program does with its own process: signals, memory, affinity.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace millrace {

// Turns SIGINT and SIGTERM into calls on a thread of its own. A second signal ends the process at once.
class SignalWatcher {
 public:
  // Blocks the two signals in the calling thread and all threads it starts from now on: create this first in
  // main.
  explicit SignalWatcher(std::function<void(int)> on_signal);
  ~SignalWatcher();

 private:
  void Watch();

  const std::function<void(int)> on_signal_;
  int signal_fd_ = -1;
  int stop_fd_ = -1;
  std::thread thread_;
};

// Blocks the two signals in the calling thread and all it starts, for programs that start threads before they
// can watch.
void BlockStopSignals();

// When the process that started this one ends, this one gets SIGTERM, and ends within 5 s of it whatever it
// has to finish; at once if that process has ended already. Thread: main, before other threads are started:
// the kernel forgets the wish when the thread that made it ends. Two things no process can mend: if its
// parent ends before it has begun to run, it cannot know; and to Linux the parent is the thread that started
// it, not that whole process.
void DieWithParent();
inline constexpr char kDieWithParentHelp[] =
    "end when the process that started this one ends, as if by SIGTERM, within 5 seconds";
// DieWithParent was called, and the parent has ended.
bool Orphaned();

// Names the calling thread, as /proc/PID/task/*/comm shows it. REQUIRES: at most 15 characters.
void NameThread(const char* name);

// CPU time that the calling thread has used, in nanoseconds.
int64_t ThreadCpuNanos();

// Memory that new allocations may take without swapping: MemAvailable, capped by the cgroup's limit. 0 if
// unknown.
uint64_t AvailableMemoryBytes();

// Cores this process may run on, and cores of the machine.
struct CpuCount {
  int allowed = 1;
  int present = 1;
};
CpuCount CountCpus();

// The cores this process may run on, rising; not empty.
std::vector<int> AllowedCores();
// Such as "0-3,8".
std::string CoreListText(const std::vector<int>& cores);

// How many cores' worth of time the process's control group gets, rounded up, whatever cores it may run on;
// SIZE_MAX: no limit.
size_t CpuTimeLimit();

// What is the same for all processes of one machine: the kernel's boot id. Empty: unknown.
std::string MachineIdentity();

// Logs a warning if the process is confined to fewer cores than `threads` while the machine has enough of
// them, as Open MPI does by default with two ranks or fewer.
void WarnIfConfined(int threads);

std::string HostName();

// So that thousands of client streams do not meet the default limit of 1024 open files.
void RaiseFileLimit();

}  // namespace millrace
