// Whether a thread that is about to wait may spin for a moment instead: only where a core would idle anyway.
// Waking a thread costs tens of microseconds, but a spinning one that takes the core of a computing one costs
// a whole time slice.
#pragma once

#include "absl/time/time.h"

namespace millrace {

// How long to spin before sleeping: about what waking costs.
inline constexpr absl::Duration kBriefSpin = absl::Microseconds(50);

// Tasks of the whole machine that run or could run now, the caller included: the first number of the fourth
// field of a line of /proc/loadavg (proc(5)). 0: not a line of that form.
int ParseRunnableTasks(const char* line);

// Thread: any, once made.
class IdleCores {
 public:
  IdleCores();
  ~IdleCores();
  IdleCores(const IdleCores&) = delete;
  IdleCores& operator=(const IdleCores&) = delete;

  // The caller may spin: this process has more than one core, and with the caller no more tasks want to run
  // than it has cores. False where that cannot be known. Costs a few microseconds.
  bool MaySpin() const;

 private:
  const int cores_;
  int file_ = -1;
};

// Tells the core that the thread spins.
inline void SpinPause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace millrace
