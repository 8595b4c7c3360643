#include "worker/control/epoch_router.h"

#include <utility>

#include "common/status_macros.h"
#include "worker/control/stage_messages.h"
#include "worker/stage/stage_runner.h"

namespace millrace {

void EpochRouter::Open(Epoch epoch, uint32_t max_rows, std::shared_ptr<StageInbox> inbox) {
  MutexLock lock(&mutex_);
  epoch_ = epoch;
  max_rows_ = max_rows;
  inbox_ = std::move(inbox);
}

void EpochRouter::Close() {
  MutexLock lock(&mutex_);
  epoch_ = Epoch();
  inbox_.reset();
}

absl::Status EpochRouter::DeliverPlan(const v1::Plan& plan) {
  std::shared_ptr<StageInbox> inbox;
  uint32_t max_rows = 0;
  {
    MutexLock lock(&mutex_);
    if (inbox_ == nullptr || Epoch(plan.epoch()) != epoch_) return absl::OkStatus();
    inbox = inbox_;
    max_rows = max_rows_;
  }
  ASSIGN_OR_RETURN(StageBatch batch, ToStageBatch(plan, max_rows));
  StageInput input{SteadyNanos(), std::move(batch)};
  if (!inbox->TryPush(input) && !inbox->closed()) {
    return absl::ResourceExhaustedError("more plans than microbatches may be in flight");
  }
  return absl::OkStatus();
}

bool EpochRouter::DeliverActivations(HopMessage message) {
  std::shared_ptr<StageInbox> inbox;
  {
    MutexLock lock(&mutex_);
    if (inbox_ == nullptr || message.epoch != epoch_) return true;
    inbox = inbox_;
  }
  StageInput input{SteadyNanos(), std::move(message)};
  return inbox->TryPush(input) || inbox->closed();
}

}  // namespace millrace
