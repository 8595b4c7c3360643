// The CUDA devices of a worker's shards.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/device/cuda_devices.h"
#include "worker/device/device.h"

namespace millrace {

// Shards of different devices are joined by NCCL, those of one by its memory. A device that fails, and work
// that takes longer than options.watchdog, end the process (watchdog.h); a limit of zero watches nothing.
//
// FAILED_PRECONDITION: the driver, or a device, does not serve; says why. INVALID_ARGUMENT: no such device;
// several compute capabilities, whose bits differ; some shards share a device and others do not.
absl::StatusOr<std::unique_ptr<DeviceGroup>> MakeCudaDevices(const CudaDevicesOptions& options);

}  // namespace millrace
