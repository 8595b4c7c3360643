#include "common/log.h"

#include <time.h>
#include <unistd.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "common/mutex.h"

namespace millrace {
namespace {

struct LogName {
  Mutex mutex;
  std::string name ABSL_GUARDED_BY(mutex) = "millrace";
};

// Leaked on purpose: threads may still log while static objects are destroyed.
LogName& Name() {
  static LogName* const name = new LogName;
  return *name;
}

// "17:03:21.042 ". Not abseil's: its time zones are shared between threads in ways the thread sanitizer
// cannot see into.
std::string TimeOfDay() {
  timespec now = {};
  clock_gettime(CLOCK_REALTIME, &now);
  tm local = {};
  localtime_r(&now.tv_sec, &local);
  return absl::StrFormat("%02d:%02d:%02d.%03d ", local.tm_hour, local.tm_min, local.tm_sec,
                         now.tv_nsec / 1000000);
}

}  // namespace

void SetLogName(std::string name) {
  MutexLock lock(&Name().mutex);
  Name().name = std::move(name);
}

void LogLine(LogSeverity severity, absl::string_view message) {
  static constexpr absl::string_view kSeverity[] = {"", "warning: ", "error: "};
  std::string line = TimeOfDay();
  {
    MutexLock lock(&Name().mutex);
    absl::StrAppend(&line, "[", Name().name, "] ");
  }
  absl::StrAppend(&line, kSeverity[static_cast<int>(severity)], message);
  // A message may quote a peer: it stays one line, and moves no cursor.
  for (char& c : line) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
  }
  line.push_back('\n');
  // A log line that cannot be written has nowhere else to go.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace millrace
