// One line per event on standard error: time, severity, process name, message. Never the text of a request.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace millrace {

enum class LogSeverity { kInfo, kWarning, kError };

// Names this process in every line ("coordinator", "worker 2"). Thread: any.
void SetLogName(std::string name);

// Writes one line with one write(2), so that lines of several processes do not mix.
void LogLine(LogSeverity severity, absl::string_view message);

template <typename... Args>
void LogInfo(const Args&... args) {
  LogLine(LogSeverity::kInfo, absl::StrCat(args...));
}
template <typename... Args>
void LogWarning(const Args&... args) {
  LogLine(LogSeverity::kWarning, absl::StrCat(args...));
}
template <typename... Args>
void LogError(const Args&... args) {
  LogLine(LogSeverity::kError, absl::StrCat(args...));
}

}  // namespace millrace
