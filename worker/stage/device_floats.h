// Small float tensors of a stage in the memory of a device.
#pragma once

#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "worker/device/device.h"

namespace millrace {

struct FloatsToCopy {
  absl::Span<const float> from;  // in host memory
  const float** to = nullptr;    // gets where they are in the device's memory
};

// Copies all, each to an address that is a multiple of 256, and waits until they are there. Errors of
// Device::Allocate, naming `what`, and of Device::Finish. REQUIRES: !device.on_host(). Thread: the shard's.
absl::StatusOr<DeviceMemory> CopyFloats(Device& device, absl::string_view what,
                                        const std::vector<FloatsToCopy>& floats);

}  // namespace millrace
