#include "worker/stage/stage_runner.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/idle_cores.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "worker/stage/stage_model.h"

namespace millrace {

StageRunner::StageRunner(const StageRunnerOptions& options, StageCompute* stage, KvCache* cache,
                         StageInbox* inbox, Emit emit)
    : options_(options),
      stage_(stage),
      cache_(cache),
      inbox_(inbox),
      emit_(std::move(emit)),
      joiner_({options.epoch, options.first, options.max_in_flight}) {}

absl::Status StageRunner::Run() {
  const IdleCores idle_cores;
  std::vector<StageInput> inputs;
  // Nothing more comes once the inbox is closed and drained.
  while (!(inputs = inbox_->PopAll()).empty()) {
    for (StageInput& input : inputs) RETURN_IF_ERROR(joiner_.Add(std::move(input)));
    while (std::optional<JoinedMicrobatch> joined = joiner_.Next())
      RETURN_IF_ERROR(RunOne(*std::move(joined)));
    if (inbox_->size() == 0 && idle_cores.MaySpin()) inbox_->SpinForItem(kBriefSpin);
  }
  return absl::OkStatus();
}

absl::Status StageRunner::CheckActivations(const HopMessage& message) const {
  const size_t expected = size_t{message.rows} * options_.hidden_size * sizeof(float);
  if (message.kind != HopKind::kActivations || message.payload == nullptr ||
      message.payload->size != expected) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", message.microbatch.value(), ": ",
                                                   message.payload == nullptr ? 0 : message.payload->size,
                                                   " bytes of activations, expected ", expected));
  }
  return absl::OkStatus();
}

absl::Status StageRunner::RunOne(JoinedMicrobatch joined) {
  RETURN_IF_ERROR(CheckBatch(joined.batch, options_.limits));
  StageOutput output;
  std::shared_ptr<PooledBuffer> input;
  if (joined.activations.has_value()) {
    RETURN_IF_ERROR(CheckActivations(*joined.activations));
    output.stamps = std::move(joined.activations->stamps);
    input = std::move(joined.activations->payload);
  }
  StageStamp stamp;
  stamp.received_ns = joined.received_ns;
  const int64_t cpu_before = ThreadCpuNanos();
  stamp.started_ns = SteadyNanos();
  ASSIGN_OR_RETURN(std::shared_ptr<PooledBuffer> activations,
                   stage_->Run(joined.batch, std::move(input), *cache_));
  if (options_.last) {
    ASSIGN_OR_RETURN(output.results, stage_->Sample(joined.batch, *activations));
  } else {
    output.activations = std::move(activations);
  }
  stamp.ended_ns = SteadyNanos();
  // While a device works for it, a stage is busy.
  stamp.cpu_ns =
      stage_->waits_for_device() ? stamp.ended_ns - stamp.started_ns : ThreadCpuNanos() - cpu_before;
  output.epoch = joined.batch.epoch;
  output.microbatch = joined.batch.id;
  output.rows = joined.batch.rows();
  output.stamps.push_back(stamp);
  RETURN_IF_ERROR(emit_(std::move(output)));
  done_.fetch_add(1, std::memory_order_relaxed);
  return absl::OkStatus();
}

}  // namespace millrace
