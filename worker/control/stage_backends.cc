#include "worker/control/stage_backends.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/transport/numeric_messages.h"
#include "worker/device/cpu/host_devices.h"

namespace millrace {

std::vector<ActivationType> SupportedActivations() {
  return {ActivationType::kInt8, ActivationType::kF32};
}

template <class From>
absl::StatusOr<StageBackendChoice> ToBackendChoice(const From& from) {
  const std::optional<ActivationType> activations = FromWire(from.activations());
  const std::optional<KvType> kv = FromWire(from.kv_type());
  if (!activations.has_value() || !kv.has_value()) {
    return absl::InvalidArgumentError("the coordinator chose types that this worker does not know");
  }
  const v1::CoreShare& share = from.core_share();
  if (share.index() >= share.count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a share of the cores that cannot be: ", share.index(), " of ", share.count()));
  }
  return StageBackendChoice{{*activations, *kv}, share.index(), share.count()};
}

template absl::StatusOr<StageBackendChoice> ToBackendChoice(const v1::Measure& from);
template absl::StatusOr<StageBackendChoice> ToBackendChoice(const v1::Assign& from);

absl::Span<const int> PartOfCores(absl::Span<const int> cores, size_t index, size_t count) {
  MILLRACE_CHECK(index < count && !cores.empty());
  const size_t begin = cores.size() * index / count;
  const size_t end = cores.size() * (index + 1) / count;
  return cores.subspan(begin, std::max<size_t>(end - begin, 1));
}

absl::StatusOr<std::vector<std::unique_ptr<kernels::Backend>>> MakeStageBackends(
    const StageBackendOptions& options, const StageBackendChoice& choice, absl::Span<const int> cores) {
  const std::vector<ActivationType> supported = SupportedActivations();
  if (std::find(supported.begin(), supported.end(), choice.numeric.activations) == supported.end()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "this worker cannot compute with ", ActivationTypeName(choice.numeric.activations), " activations"));
  }
  const absl::Span<const int> own = PartOfCores(cores, choice.sharer, choice.sharers);
  // A container may have less time than cores.
  const size_t most = std::max<size_t>(1, CpuTimeLimit() / static_cast<size_t>(options.shards));
  std::vector<std::unique_ptr<kernels::Backend>> backends;
  for (int64_t shard = 0; shard < options.shards; ++shard) {
    const absl::Span<const int> part = PartOfCores(own, shard, options.shards);
    kernels::CpuBackendOptions cpu;
    cpu.isa = options.isa;
    cpu.activations = choice.numeric.activations == ActivationType::kInt8 ? kernels::ActivationType::kInt8
                                                                          : kernels::ActivationType::kF32;
    cpu.threads = options.threads > 0 ? static_cast<size_t>(options.threads) : std::min(part.size(), most);
    if (options.pin_threads) cpu.cores.assign(part.begin(), part.end());
    ASSIGN_OR_RETURN(std::unique_ptr<kernels::Backend> backend, kernels::MakeCpuBackend(cpu));
    backends.push_back(std::move(backend));
  }
  return backends;
}

absl::StatusOr<std::unique_ptr<DeviceGroup>> MakeStageDevices(const StageBackendOptions& options,
                                                              const StageBackendChoice& choice,
                                                              absl::Span<const int> cores) {
  ASSIGN_OR_RETURN(std::vector<std::unique_ptr<kernels::Backend>> backends,
                   MakeStageBackends(options, choice, cores));
  return std::make_unique<HostDevices>(std::move(backends));
}

}  // namespace millrace
