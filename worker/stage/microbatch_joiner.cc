#include "worker/stage/microbatch_joiner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace {

absl::Status MicrobatchJoiner::Add(StageInput input) {
  const bool is_plan = std::holds_alternative<StageBatch>(input.content);
  const Epoch epoch =
      is_plan ? std::get<StageBatch>(input.content).epoch : std::get<HopMessage>(input.content).epoch;
  const uint64_t id = is_plan ? std::get<StageBatch>(input.content).id.value()
                              : std::get<HopMessage>(input.content).microbatch.value();
  if (epoch != options_.epoch) return absl::OkStatus();
  if (!is_plan && options_.first_stage) {
    return absl::InvalidArgumentError("activations were sent to the first stage");
  }
  if (id < next_id_) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", id, " came again; ", next_id_, " is next"));
  }
  if (id >= next_id_ + options_.max_in_flight) {
    return absl::ResourceExhaustedError(absl::StrCat("microbatch ", id, " while ", next_id_,
                                                     " is next: more than ", options_.max_in_flight,
                                                     " in flight"));
  }
  return Store(waiting_[id], std::move(input));
}

absl::Status MicrobatchJoiner::Store(Halves& halves, StageInput input) {
  halves.received_ns = std::max(halves.received_ns, input.arrived_ns);
  if (auto* batch = std::get_if<StageBatch>(&input.content)) {
    if (halves.batch.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the plan of microbatch ", batch->id.value(), " came twice"));
    }
    halves.batch = std::move(*batch);
  } else {
    auto& message = std::get<HopMessage>(input.content);
    if (halves.activations.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the activations of microbatch ", message.microbatch.value(), " came twice"));
    }
    halves.activations = std::move(message);
  }
  if (halves.batch.has_value() && halves.activations.has_value() &&
      halves.batch->rows() != halves.activations->rows) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", halves.batch->id.value(), ": plan of ",
                                                   halves.batch->rows(), " rows, activations of ",
                                                   halves.activations->rows));
  }
  return absl::OkStatus();
}

std::optional<JoinedMicrobatch> MicrobatchJoiner::Next() {
  const auto it = waiting_.find(next_id_);
  if (it == waiting_.end()) return std::nullopt;
  Halves& halves = it->second;
  if (!halves.batch.has_value() || (!options_.first_stage && !halves.activations.has_value()))
    return std::nullopt;
  std::optional<JoinedMicrobatch> joined(std::in_place);
  joined->batch = *std::move(halves.batch);
  joined->activations.swap(halves.activations);
  joined->received_ns = halves.received_ns;
  waiting_.erase(it);
  ++next_id_;
  return joined;
}

}  // namespace millrace
