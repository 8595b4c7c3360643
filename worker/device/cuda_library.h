// Loads libmillrace_cuda.so, so that workers start where there is no CUDA.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/device/cuda_devices.h"

namespace millrace {

inline constexpr char kCudaLibraryFile[] = "libmillrace_cuda.so";
// Names another file to load.
inline constexpr char kCudaLibraryVariable[] = "MILLRACE_CUDA_LIBRARY";

// Where the library is looked for: what the environment names, else beside this program.
std::string CudaLibraryPath();

// Never unloaded. Thread: any.
class CudaLibrary {
 public:
  // Each error is one line that says what is missing. NOT_FOUND: there is no such file. FAILED_PRECONDITION:
  // it cannot be loaded, or is of another build; there is no driver, it is too old, or no device is visible.
  static absl::StatusOr<std::shared_ptr<const CudaLibrary>> Load(const std::string& path);

  const std::vector<CudaDeviceInfo>& devices() const { return devices_; }

  // FAILED_PRECONDITION, one line: one of `devices` is not there, or its compute capability is too low.
  absl::Status CheckDevices(const std::vector<int>& devices) const;

  // Errors as CheckDevices and CudaEntryPoints.open.
  absl::StatusOr<std::unique_ptr<DeviceGroup>> Open(const CudaDevicesOptions& options) const;

 private:
  CudaLibrary(const CudaEntryPoints& entry, std::vector<CudaDeviceInfo> devices)
      : entry_(entry), devices_(std::move(devices)) {}

  const CudaEntryPoints entry_;
  const std::vector<CudaDeviceInfo> devices_;
};

// The devices of a worker's shards, where workers of one machine are numbered from 0: worker r of T shards
// takes devices r * T to r * T + T - 1.
std::vector<int> DevicesOfWorker(int local_rank, int shards);

}  // namespace millrace
