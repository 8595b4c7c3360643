// The clock as a value that can be replaced in tests.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace millrace {

// Thread: any. Now() never goes backwards and has no relation to the calendar.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;

  // The process's steady clock. Never destroyed.
  static const Clock& Steady();
};

// The steady clock in nanoseconds, as stamps count it.
int64_t SteadyNanos();

}  // namespace millrace
