// A device whose memory is not the host's, as far as the stage can tell: a CPU backend behind it, and a count
// of what is allocated.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "worker/device/device.h"

namespace millrace::testing {

// Of one device; outlives it.
struct FarMemory {
  uint64_t free = uint64_t{1} << 30;
  int allocations = 0;                         // so far
  int fails = -1;                              // this allocation, counted from 0
  std::string failed;                          // what that was for
  std::map<const uint8_t*, uint64_t> live;     // of the device, with their bytes
  std::map<const uint8_t*, uint64_t> staging;  // of the host
  int misplaced = 0;                           // copies that were not between the two
  absl::Status status = absl::OkStatus();      // of Finish
};

// One shard. Ops run when they are enqueued; nothing is captured.
std::unique_ptr<DeviceGroup> MakeFarDevices(const kernels::Backend& backend, FarMemory* memory);

}  // namespace millrace::testing
