#include "worker/control/backend_choice.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/options.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "kernels/backend.h"

namespace millrace {
namespace {

// What CUDA takes of a device's memory for itself, one part in so many: its context, kernels, NCCL's buffers.
constexpr uint64_t kCudaShare = 16;

std::string DeviceNames(const CudaLibrary& library, const std::vector<int>& devices) {
  std::string text;
  for (const int device : devices) {
    const CudaDeviceInfo& info = library.devices()[device];
    absl::StrAppend(&text, text.empty() ? "" : "; ", "device ", device, ", ", info.name, ", ",
                    FormatBytes(info.memory_bytes));
  }
  return text;
}

absl::StatusOr<std::shared_ptr<const CudaLibrary>> LoadFor(const std::string& path,
                                                           const StageBackendOptions& options) {
  ASSIGN_OR_RETURN(std::shared_ptr<const CudaLibrary> library, CudaLibrary::Load(path));
  RETURN_IF_ERROR(library->CheckDevices(CudaDevicesOf(options)));
  return library;
}

}  // namespace

absl::Status CheckBackendFlags(const StageBackendOptions& options) {
  if (options.backend != "auto" && options.backend != "cpu" && options.backend != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("--backend: '", options.backend, "' is not auto, cpu or cuda"));
  }
  if (options.collective != "ordered" && options.collective != "allreduce") {
    return absl::InvalidArgumentError(
        absl::StrCat("--collective: '", options.collective, "' is not ordered or allreduce"));
  }
  if (options.cuda_devices.empty()) return absl::OkStatus();
  if (options.backend == "cpu") {
    return absl::InvalidArgumentError("--devices: these are CUDA devices, and --backend is cpu");
  }
  if (options.cuda_devices.size() != static_cast<size_t>(options.shards)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--devices: ", options.cuda_devices.size(), " devices for ", options.shards,
                     " shards; --tensor-parallel says how many shards there are"));
  }
  return absl::OkStatus();
}

absl::Status ChooseBackend(const std::string& library_path, StageBackendOptions* options) {
  options->cuda = nullptr;
  if (options->backend == "cpu") return absl::OkStatus();
  absl::StatusOr<std::shared_ptr<const CudaLibrary>> library = LoadFor(library_path, *options);
  if (library.ok()) {
    options->cuda = *std::move(library);
    LogInfo("backend: ", BackendFamily(*options), " on ",
            DeviceNames(*options->cuda, CudaDevicesOf(*options)));
    return absl::OkStatus();
  }
  if (options->backend == "cuda") {
    return absl::FailedPreconditionError(absl::StrCat("--backend cuda: ", library.status().message()));
  }
  LogInfo("backend: cpu, as ", library.status().message());
  return absl::OkStatus();
}

std::string BackendFamily(const StageBackendOptions& options) {
  if (options.cuda == nullptr) return "cpu";
  const std::vector<int> devices = CudaDevicesOf(options);
  const CudaDeviceInfo& first = options.cuda->devices()[devices.front()];
  // Shards of one device do not use NCCL.
  const bool by_shards =
      options.collective == "allreduce" && std::set<int>(devices.begin(), devices.end()).size() > 1;
  // Which of its algorithms multiplies F16 and BF16 weights is up to the version.
  return absl::StrCat("cuda/sm_", first.capability,
                      first.cublas_version == 0 ? "" : absl::StrCat("/cublas-", first.cublas_version),
                      by_shards ? absl::StrCat("/allreduce-", options.shards) : "");
}

absl::StatusOr<std::string> CpuKernelsName(const std::string& isa) {
  kernels::CpuBackendOptions options;
  options.isa = isa;
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Backend> backend, kernels::MakeCpuBackend(options));
  return backend->name();
}

std::string CudaKernelsName(const StageBackendOptions& options) {
  const CudaDeviceInfo& first = options.cuda->devices()[CudaDevicesOf(options).front()];
  return absl::StrCat("sm_", first.capability, ", ",
                      options.shards > 1 ? absl::StrCat(options.shards, " x ") : "", first.name);
}

std::vector<ActivationType> SupportedActivations(const StageBackendOptions& options) {
  if (options.cuda != nullptr) return {ActivationType::kInt8};
  return {ActivationType::kInt8, ActivationType::kF32};
}

std::vector<KvType> SupportedKvTypes(const StageBackendOptions& options) {
  if (options.cuda != nullptr) return {KvType::kF16, KvType::kI8};
  return {KvType::kF16, KvType::kI8, KvType::kF32};
}

uint64_t BackendMemoryBytes(const StageBackendOptions& options) {
  if (options.cuda == nullptr) return AvailableMemoryBytes();
  const std::vector<int> devices = CudaDevicesOf(options);
  uint64_t bytes = 0;
  for (const int device : std::set<int>(devices.begin(), devices.end())) {
    const uint64_t all = options.cuda->devices()[device].memory_bytes;
    bytes += all - all / kCudaShare;
  }
  return bytes;
}

}  // namespace millrace
