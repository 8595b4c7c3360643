// What libmillrace_cuda.so exports.
#include <set>

#include "common/status_macros.h"
#include "worker/device/cuda/cuda_device_group.h"
#include "worker/device/cuda/device_list.h"
#include "worker/device/cuda/loaded_libraries.h"
#include "worker/device/cuda_build_id.h"
#include "worker/device/cuda_devices.h"

namespace millrace {
namespace {

absl::StatusOr<std::unique_ptr<DeviceGroup>> Open(const CudaDevicesOptions& options) {
  const std::set<int> distinct(options.devices.begin(), options.devices.end());
  if (distinct.size() > 1) RETURN_IF_ERROR(LoadNccl());
  return MakeCudaDevices(options);
}

}  // namespace
}  // namespace millrace

extern "C" __attribute__((visibility("default"))) const millrace::CudaEntryPoints MillraceCuda = {
    millrace::kCudaBuildId, millrace::ListCudaDevices, millrace::Open};
