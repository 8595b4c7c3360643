// The clock as a value that can be replaced in tests.
#pragma once

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

}  // namespace millrace
