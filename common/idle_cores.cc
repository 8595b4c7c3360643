#include "common/idle_cores.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

#include "common/process.h"

namespace millrace {

int ParseRunnableTasks(const char* line) {
  int runnable = 0;
  int all = 0;
  return std::sscanf(line, "%*f %*f %*f %d/%d", &runnable, &all) == 2 && runnable > 0 ? runnable : 0;
}

IdleCores::IdleCores() : cores_(CountCpus().allowed), file_(open("/proc/loadavg", O_RDONLY | O_CLOEXEC)) {}

IdleCores::~IdleCores() {
  if (file_ >= 0) close(file_);
}

bool IdleCores::MaySpin() const {
  if (cores_ < 2 || file_ < 0) return false;
  char line[128];
  const ssize_t size = pread(file_, line, sizeof(line) - 1, 0);
  if (size <= 0) return false;
  line[size] = '\0';
  const int runnable = ParseRunnableTasks(line);
  return runnable > 0 && runnable <= cores_;
}

}  // namespace millrace
