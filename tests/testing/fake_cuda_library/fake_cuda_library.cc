// A library with the exports of libmillrace_cuda.so: three devices, of which the last is too old, and none
// can be opened. Macros make it one that does not serve.
#include "worker/device/cuda_build_id.h"
#include "worker/device/cuda_devices.h"

namespace millrace {
namespace {

absl::StatusOr<std::vector<CudaDeviceInfo>> ListDevices() {
#ifdef NO_DRIVER
  return absl::FailedPreconditionError("there is no driver");
#else
#ifdef CUBLAS
  constexpr uint64_t kCublas = 130200;
#else
  constexpr uint64_t kCublas = 0;
#endif
  return std::vector<CudaDeviceInfo>{
      {"Fake 90", 90, 1600, kCublas}, {"Fake 90", 90, 3200, kCublas}, {"Fake 75", 75, 16, kCublas}};
#endif
}

absl::StatusOr<std::unique_ptr<DeviceGroup>> Open(const CudaDevicesOptions& options) {
  return absl::UnimplementedError("opened " + std::to_string(options.devices.size()));
}

#ifdef OTHER_BUILD
constexpr char kId[] = "another build";
#else
constexpr const char* kId = kCudaBuildId;
#endif

}  // namespace
}  // namespace millrace

#ifdef NO_ENTRY
#define MillraceCuda MillraceOther
#endif
extern "C" __attribute__((visibility("default")))
const millrace::CudaEntryPoints MillraceCuda = {millrace::kId, millrace::ListDevices, millrace::Open};
