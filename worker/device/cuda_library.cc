#include "worker/device/cuda_library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/device/cuda_build_id.h"

namespace millrace {

std::string CudaLibraryPath() {
  if (const char* named = std::getenv(kCudaLibraryVariable); named != nullptr && *named != '\0') return named;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  return (program.parent_path() / kCudaLibraryFile).string();
}

absl::StatusOr<std::shared_ptr<const CudaLibrary>> CudaLibrary::Load(const std::string& path) {
  if (access(path.c_str(), F_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("there is no ", path, ": this build has no CUDA backend (see docs/CUDA.md)"));
  }
  // The path has a slash, so that no other folder is searched.
  void* handle = dlopen(std::filesystem::absolute(path).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return absl::FailedPreconditionError(absl::StrCat("cannot load ", dlerror()));
  const auto* entry = static_cast<const CudaEntryPoints*>(dlsym(handle, kCudaEntryPointsName));
  if (entry == nullptr || std::string(entry->build_id) != kCudaBuildId) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " was built for another Millrace (",
        entry == nullptr ? "it has no entry points" : entry->build_id, "; this one is ", kCudaBuildId, ")"));
  }
  ASSIGN_OR_RETURN(std::vector<CudaDeviceInfo> devices, entry->list_devices());
  return std::shared_ptr<const CudaLibrary>(new CudaLibrary(*entry, std::move(devices)));
}

absl::Status CudaLibrary::CheckDevices(const std::vector<int>& devices) const {
  for (const int device : devices) {
    if (device < 0 || static_cast<size_t>(device) >= devices_.size()) {
      return absl::FailedPreconditionError(absl::StrCat("there is no CUDA device ", device, ": ",
                                                        devices_.size(), " visible, numbered from 0"));
    }
    const CudaDeviceInfo& info = devices_[device];
    if (info.capability < kCudaLeastCapability) {
      return absl::FailedPreconditionError(
          absl::StrCat("CUDA device ", device, ", ", info.name, ", has compute capability ",
                       info.capability / 10, ".", info.capability % 10, "; 8.0 or more is needed"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DeviceGroup>> CudaLibrary::Open(const CudaDevicesOptions& options) const {
  RETURN_IF_ERROR(CheckDevices(options.devices));
  return entry_.open(options);
}

std::vector<int> DevicesOfWorker(int local_rank, int shards) {
  std::vector<int> devices;
  for (int shard = 0; shard < shards; ++shard) devices.push_back(local_rank * shards + shard);
  return devices;
}

}  // namespace millrace
