#include "worker/control/coordinator_lease.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/error_reason.h"
#include "common/log.h"
#include "common/options.h"
#include "common/process.h"

namespace millrace {
namespace {

constexpr int kStepsInTimeout = 20;
constexpr char kCoordinatorLost[] = "COORDINATOR_LOST";

// By the coordinator's end, or that of the connection. Other codes are its answer to this worker.
bool MeansItIsGone(absl::StatusCode code) {
  return code == absl::StatusCode::kOk || code == absl::StatusCode::kUnavailable ||
         code == absl::StatusCode::kCancelled;
}

}  // namespace

absl::Duration SilenceMeter::Tick(bool heard, absl::Time now) {
  const absl::Duration passed = std::clamp(now - last_tick_, absl::ZeroDuration(), 2 * step_);
  last_tick_ = now;
  silence_ = heard ? absl::ZeroDuration() : silence_ + passed;
  return silence_;
}

CoordinatorLease::CoordinatorLease(absl::Duration timeout, std::function<void()> on_over)
    : timeout_(timeout), on_over_(std::move(on_over)), thread_([this] {
        NameThread("lease");
        Watch();
      }) {}

CoordinatorLease::~CoordinatorLease() {
  stop_.Close();
  thread_.join();
}

void CoordinatorLease::Watch() {
  const absl::Duration step = timeout_ / kStepsInTimeout;
  SilenceMeter meter(step, Clock::Steady().Now());
  while (!stop_.closed()) {
    stop_.Pop(step);
    const bool heard = heard_.exchange(false, std::memory_order_relaxed);
    if (meter.Tick(heard, Clock::Steady().Now()) < timeout_) continue;
    if (!stop_.closed()) on_over_();
    return;
  }
}

void EndInSilence(const std::string& coordinator, absl::Duration timeout) {
  LogError("coordinator ", coordinator, " has been silent for ", absl::FormatDuration(timeout),
           " (--coordinator-timeout): this worker ends; start it again once the coordinator is there");
  _exit(kExitCoordinatorLost);
}

absl::Status WhyItEnds(const std::string& coordinator, const absl::Status& how) {
  if (!MeansItIsGone(how.code())) {
    return absl::Status(how.code(), absl::StrCat("coordinator ", coordinator, ": ", how.message()));
  }
  const std::string why = how.ok() ? "it ended the control stream" : std::string(how.message());
  return WithReason(absl::UnavailableError(absl::StrCat("coordinator ", coordinator, " is gone: ", why)),
                    kCoordinatorLost, true);
}

int WorkerExitCode(const absl::Status& status) {
  if (status.ok()) return kExitOk;
  return status.GetPayload(kReasonPayload) == absl::Cord(kCoordinatorLost) ? kExitCoordinatorLost
                                                                           : kExitFailure;
}

}  // namespace millrace
