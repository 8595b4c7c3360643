// Brings plans and activations, which arrive on gRPC threads, to the compute thread of the current epoch.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "common/hop_message.h"
#include "common/mutex.h"
#include "millrace/v1/cluster.pb.h"
#include "worker/stage/stage_io.h"

namespace millrace {

// Thread: any.
class EpochRouter {
 public:
  // From now on what belongs to `epoch` goes to `inbox`; everything else is dropped as stale.
  void Open(Epoch epoch, uint32_t max_rows, std::shared_ptr<StageInbox> inbox);
  void Close();

  // An error: the plan is malformed, or the inbox is full. Stale plans are dropped with OK.
  absl::Status DeliverPlan(const v1::Plan& plan);
  // False when the inbox is full.
  bool DeliverActivations(HopMessage message);

 private:
  Mutex mutex_;
  Epoch epoch_ ABSL_GUARDED_BY(mutex_);
  uint32_t max_rows_ ABSL_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<StageInbox> inbox_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
