// What devices the driver shows, and whether it serves.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "worker/device/cuda_devices.h"

namespace millrace {

// As CudaEntryPoints.list_devices.
absl::StatusOr<std::vector<CudaDeviceInfo>> ListCudaDevices();

}  // namespace millrace
