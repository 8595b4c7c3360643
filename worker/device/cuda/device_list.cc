#include "worker/device/cuda/device_list.h"

#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cublas_lt.h"

namespace millrace {
namespace {

// The first driver that serves CUDA 13 (CUDA Toolkit Release Notes, "CUDA Toolkit and Minimum Required Driver
// Version for CUDA Minor Version Compatibility").
constexpr int kLeastDriver = 580;
constexpr int kLeastVersion = 13000;  // as cudaDriverGetVersion counts: 1000 * major + 10 * minor

absl::Status Failed(cudaError_t error, absl::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat("CUDA: ", what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

}  // namespace

absl::StatusOr<std::vector<CudaDeviceInfo>> ListCudaDevices() {
  int version = 0;
  if (const cudaError_t error = cudaDriverGetVersion(&version); error != cudaSuccess) {
    return Failed(error, "cudaDriverGetVersion");
  }
  // The runtime reports version 0 where there is no libcuda.so.1.
  if (version == 0) return absl::FailedPreconditionError("there is no NVIDIA driver on this machine");
  if (version < kLeastVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the NVIDIA driver serves CUDA ", version / 1000, ".",
                                                      version % 1000 / 10, " only; driver ", kLeastDriver,
                                                      " or later is needed"));
  }
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && count == 0)) {
    return absl::FailedPreconditionError("no CUDA device is visible (CUDA_VISIBLE_DEVICES may hide them)");
  }
  if (counted != cudaSuccess) return Failed(counted, "cudaGetDeviceCount");
  std::vector<CudaDeviceInfo> devices(count);
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties = {};
    if (const cudaError_t error = cudaGetDeviceProperties(&properties, device); error != cudaSuccess) {
      return Failed(error, absl::StrCat("cudaGetDeviceProperties of device ", device));
    }
    devices[device] = {properties.name, 10 * properties.major + properties.minor, properties.totalGlobalMem,
                       kernels::cuda::CublasProducts::Version()};
  }
  return devices;
}

}  // namespace millrace
