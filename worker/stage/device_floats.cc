#include "worker/stage/device_floats.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr uint64_t kAlignment = 256;
constexpr uint64_t kStagingBytes = uint64_t{4} << 20;

uint64_t BytesOf(const FloatsToCopy& floats) {
  return floats.from.size() * sizeof(float);
}

uint64_t RoundUp(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

absl::StatusOr<DeviceMemory> CopyFloats(Device& device, absl::string_view what,
                                        const std::vector<FloatsToCopy>& floats) {
  uint64_t all = 0;
  uint64_t largest = 1;
  for (const FloatsToCopy& tensor : floats) {
    all += RoundUp(BytesOf(tensor));
    largest = std::max(largest, BytesOf(tensor));
  }
  ASSIGN_OR_RETURN(DeviceMemory memory, device.Allocate(what, std::max(all, kAlignment)));
  const uint64_t step = std::min(largest, kStagingBytes);
  ASSIGN_OR_RETURN(const DeviceMemory staging, device.AllocateStaging(absl::StrCat("copy of ", what), step));
  uint8_t* to = memory.data();
  for (const FloatsToCopy& tensor : floats) {
    const auto* from = reinterpret_cast<const uint8_t*>(tensor.from.data());
    for (uint64_t begin = 0; begin < BytesOf(tensor); begin += step) {
      const uint64_t count = std::min(step, BytesOf(tensor) - begin);
      std::memcpy(staging.data(), from + begin, count);
      device.CopyIn(to + begin, staging.data(), count);
      RETURN_IF_ERROR(device.Finish());
    }
    *tensor.to = reinterpret_cast<const float*>(to);
    to += RoundUp(BytesOf(tensor));
  }
  return memory;
}

}  // namespace millrace
