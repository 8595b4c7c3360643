#include "common/log.h"

#include <unistd.h>

#include "absl/strings/ascii.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
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

}  // namespace

void SetLogName(std::string name) {
  MutexLock lock(&Name().mutex);
  Name().name = std::move(name);
}

void LogLine(LogSeverity severity, absl::string_view message) {
  static constexpr absl::string_view kSeverity[] = {"", "warning: ", "error: "};
  std::string line = absl::FormatTime("%H:%M:%E3S ", absl::Now(), absl::LocalTimeZone());
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
