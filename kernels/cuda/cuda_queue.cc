#include "kernels/cuda/cuda_queue.h"

#include "absl/strings/str_cat.h"

namespace millrace::kernels::cuda {

absl::Status ReadTraits(int device, DeviceTraits* traits) {
  constexpr int kLeastCapability = 80;
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess) {
    return absl::FailedPreconditionError(absl::StrCat("CUDA: ", cudaGetErrorString(error)));
  }
  if (device < 0 || device >= devices) {
    return absl::InvalidArgumentError(
        absl::StrCat("CUDA: there is no device ", device, ": ", devices, " are visible"));
  }
  int major = 0, minor = 0, shared = 0, multiprocessors = 0;
  for (const auto& [attribute, value] : {std::pair{cudaDevAttrComputeCapabilityMajor, &major},
                                         {cudaDevAttrComputeCapabilityMinor, &minor},
                                         {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared},
                                         {cudaDevAttrMultiProcessorCount, &multiprocessors}}) {
    if (const cudaError_t error = cudaDeviceGetAttribute(value, attribute, device); error != cudaSuccess) {
      return absl::FailedPreconditionError(
          absl::StrCat("CUDA: device ", device, ": ", cudaGetErrorString(error)));
    }
  }
  if (10 * major + minor < kLeastCapability) {
    return absl::FailedPreconditionError(absl::StrCat("CUDA: device ", device, " has compute capability ",
                                                      major, ".", minor, "; 8.0 or more is needed"));
  }
  *traits = {device, 10 * major + minor, static_cast<size_t>(shared), multiprocessors};
  return absl::OkStatus();
}

void CudaQueue::Fail(absl::string_view what, absl::string_view why) const {
  if (!status_.ok()) return;
  status_ = absl::InternalError(absl::StrCat("CUDA device ", traits_.device, ": ", what, ": ", why));
}

void CudaQueue::Check(cudaError_t error, const char* what) const {
  if (error == cudaSuccess || !status_.ok()) return;
  status_ = absl::InternalError(absl::StrCat("CUDA device ", traits_.device, ": ", what, ": ",
                                             cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

}  // namespace millrace::kernels::cuda
