#include "worker/control/stage_backends.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/transport/numeric_messages.h"
#include "worker/control/backend_choice.h"
#include "worker/device/cpu/host_devices.h"

namespace millrace {

namespace {

absl::StatusOr<std::unique_ptr<DeviceGroup>> OpenCudaDevices(const StageBackendOptions& options) {
  // Of the rows of one microbatch, which is little work beside the layers'.
  constexpr size_t kEmbedThreads = 2;
  kernels::CpuBackendOptions cpu;
  cpu.isa = options.isa;
  cpu.threads = std::min(kEmbedThreads, CpuTimeLimit());
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::Backend> host_ops, kernels::MakeCpuBackend(cpu));
  CudaDevicesOptions cuda;
  cuda.devices = CudaDevicesOf(options);
  cuda.collective =
      options.collective == "allreduce" ? CudaCollectiveKind::kAllReduce : CudaCollectiveKind::kOrdered;
  cuda.watchdog = options.watchdog;
  cuda.host_ops = std::move(host_ops);
  return options.cuda->Open(cuda);
}

}  // namespace

std::vector<int> CudaDevicesOf(const StageBackendOptions& options) {
  if (!options.cuda_devices.empty()) return {options.cuda_devices.begin(), options.cuda_devices.end()};
  return DevicesOfWorker(static_cast<int>(options.local_rank), static_cast<int>(options.shards));
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
  const std::vector<ActivationType> activations = SupportedActivations(options);
  const std::vector<KvType> kv = SupportedKvTypes(options);
  if (std::find(activations.begin(), activations.end(), choice.numeric.activations) == activations.end() ||
      std::find(kv.begin(), kv.end(), choice.numeric.kv) == kv.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("this worker's backend, ", BackendFamily(options), ", cannot compute with ",
                     ActivationTypeName(choice.numeric.activations), " activations and ",
                     KvTypeName(choice.numeric.kv), " keys and values"));
  }
  if (options.cuda != nullptr) return OpenCudaDevices(options);
  ASSIGN_OR_RETURN(std::vector<std::unique_ptr<kernels::Backend>> backends,
                   MakeStageBackends(options, choice, cores));
  return std::make_unique<HostDevices>(std::move(backends));
}

}  // namespace millrace
