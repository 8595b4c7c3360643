#include "common/clock.h"

#include <chrono>

namespace millrace {
namespace {

class SteadyClock final : public Clock {
 public:
  absl::Time Now() const override {
    return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
};

}  // namespace

const Clock& Clock::Steady() {
  static const SteadyClock clock;
  return clock;
}

int64_t SteadyNanos() {
  return absl::ToUnixNanos(Clock::Steady().Now());
}

}  // namespace millrace
