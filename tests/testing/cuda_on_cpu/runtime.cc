// CUDA runtime: devices, errors, memory and copies. Semantics: CUDA Runtime API documentation.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "device_memory.h"
#include "faults.h"
#include "stream_work.h"
#include "streams.h"

namespace cuda_on_cpu::internal {
namespace {

bool IsDevice(int device) {
  return device >= 0 && device < TheMachine().devices;
}

struct Copy {
  void* to;
  size_t to_pitch;
  const void* from;
  size_t from_pitch;
  size_t width;
  size_t rows;
  cudaMemcpyKind kind;

  size_t to_bytes() const { return rows == 0 ? 0 : (rows - 1) * to_pitch + width; }
  size_t from_bytes() const { return rows == 0 ? 0 : (rows - 1) * from_pitch + width; }
};

void RunCopy(const Copy& copy) {
  if (copy.width == 0) return;  // the pointers may be null
  for (size_t row = 0; row < copy.rows; ++row) {
    std::memcpy(static_cast<char*>(copy.to) + row * copy.to_pitch,
                static_cast<const char*>(copy.from) + row * copy.from_pitch, copy.width);
  }
}

// Both sides are what the kind says, within one allocation each.
cudaError_t CheckCopy(const Copy& copy, const Located& to, const Located& from) {
  if (copy.width > copy.to_pitch || copy.width > copy.from_pitch) return cudaErrorInvalidPitchValue;
  if (!to.whole || !from.whole) return cudaErrorInvalidValue;
  const bool to_device = to.place == Place::kDevice, from_device = from.place == Place::kDevice;
  switch (copy.kind) {
    case cudaMemcpyHostToHost:
      return to_device || from_device ? cudaErrorInvalidValue : cudaSuccess;
    case cudaMemcpyHostToDevice:
      return !to_device || from_device ? cudaErrorInvalidValue : cudaSuccess;
    case cudaMemcpyDeviceToHost:
      return to_device || !from_device ? cudaErrorInvalidValue : cudaSuccess;
    case cudaMemcpyDeviceToDevice:
      return !to_device || !from_device ? cudaErrorInvalidValue : cudaSuccess;
    case cudaMemcpyDefault:
      return cudaSuccess;
  }
  return cudaErrorInvalidMemcpyDirection;
}

cudaError_t CopyNow(const Copy& copy) {
  const Located to = Locate(copy.to, copy.to_bytes()), from = Locate(copy.from, copy.from_bytes());
  if (const cudaError_t error = CheckCopy(copy, to, from); error != cudaSuccess) return error;
  if (SpoilCaptures()) return cudaErrorStreamCaptureUnsupported;
  const DeviceAccess access;
  RunCopy(copy);
  return cudaSuccess;
}

// "API synchronization behavior": from pageable memory the bytes are taken before the call returns; to
// pageable memory they are there when it does.
cudaError_t CopyLater(const Copy& copy, cudaStream_t stream) {
  if (copy.rows == 0 || copy.width == 0) return cudaSuccess;
  const Located to = Locate(copy.to, copy.to_bytes()), from = Locate(copy.from, copy.from_bytes());
  if (const cudaError_t error = CheckCopy(copy, to, from); error != cudaSuccess) return error;
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  const bool pageable = to.place == Place::kPageable || from.place == Place::kPageable;
  if (stream->capture != nullptr && pageable) {
    stream->capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  const int device = stream->device;
  const auto run = [device](const Copy& what) {
    if (LostError(device) == cudaSuccess) RunCopy(what);
  };
  if (from.place == Place::kPageable) {
    const auto* const bytes = static_cast<const char*>(copy.from);
    auto staged = std::make_shared<std::vector<char>>(bytes, bytes + copy.from_bytes());
    Copy from_staged = copy;
    from_staged.from = staged->data();
    return EnqueueWork(stream, [run, from_staged, staged] { run(from_staged); });
  }
  const cudaError_t error = EnqueueWork(stream, [run, copy] { run(copy); });
  if (error == cudaSuccess && to.place == Place::kPageable) stream->WaitUntilIdle();
  return error;
}

cudaError_t Allocate(void** memory, size_t bytes, int device, uint64_t room) {
  if (memory == nullptr) return cudaErrorInvalidValue;
  if (SpoilCaptures()) return cudaErrorStreamCaptureUnsupported;
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  *memory = AllocateMemory(device, bytes, room);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t Free(void* memory, bool of_host) {
  if (memory == nullptr) return cudaSuccess;
  if (SpoilCaptures()) return cudaErrorStreamCaptureUnsupported;
  const Located located = Locate(memory, 1);
  // Both wait for all work of the device.
  for (int device = 0; device < TheMachine().devices; ++device) {
    if (of_host || device == located.device) WaitForDevice(device);
  }
  return FreeMemory(memory, of_host) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t CheckSet(const void* memory, size_t bytes) {
  const Located located = Locate(memory, bytes);
  return located.place != Place::kDevice || !located.whole ? cudaErrorInvalidValue : cudaSuccess;
}

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};
#define ERROR_TEXT(error, text) \
  { error, #error, text }
constexpr ErrorText kErrors[] = {
    ERROR_TEXT(cudaSuccess, "no error"),
    ERROR_TEXT(cudaErrorInvalidValue, "invalid argument"),
    ERROR_TEXT(cudaErrorMemoryAllocation, "out of memory"),
    ERROR_TEXT(cudaErrorInitializationError, "initialization error"),
    ERROR_TEXT(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR_TEXT(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    ERROR_TEXT(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR_TEXT(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    ERROR_TEXT(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR_TEXT(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR_TEXT(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    ERROR_TEXT(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    ERROR_TEXT(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR_TEXT(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ERROR_TEXT(cudaErrorNotReady, "device not ready"),
    ERROR_TEXT(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR_TEXT(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    ERROR_TEXT(cudaErrorMisalignedAddress, "misaligned address"),
    ERROR_TEXT(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR_TEXT(cudaErrorNotSupported, "operation not supported"),
    ERROR_TEXT(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR_TEXT(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR_TEXT(cudaErrorStreamCaptureMerge,
               "operation would result in a merge of separate capture sequences"),
    ERROR_TEXT(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    ERROR_TEXT(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    ERROR_TEXT(cudaErrorCapturedEvent,
               "operation not permitted on an event last recorded in a capturing stream"),
    ERROR_TEXT(cudaErrorStreamCaptureWrongThread,
               "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR_TEXT(cudaErrorUnknown, "unknown error"),
};
#undef ERROR_TEXT

const ErrorText& TextOf(cudaError_t error) {
  for (const ErrorText& text : kErrors) {
    if (text.error == error) return text;
  }
  static constexpr ErrorText kOther = {cudaErrorUnknown, "unrecognized error code",
                                       "unrecognized error code"};
  return kOther;
}

// -1: an attribute that Millrace does not ask for.
int Attribute(cudaDeviceAttr attribute) {
  const Profile& profile = TheProfile();
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return profile.capability / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return profile.capability % 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return static_cast<int>(profile.shared_bytes);
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 48 * 1024;
    case cudaDevAttrMultiProcessorCount:
      return profile.multiprocessors;
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrUnifiedAddressing:
      return 1;
    default:
      return -1;
  }
}

}  // namespace
}  // namespace cuda_on_cpu::internal

using namespace cuda_on_cpu::internal;

extern "C" {

cudaError_t cudaDriverGetVersion(int* version) {
  return Call("cudaDriverGetVersion", Needs::kNothing, [&] {
    *version = TheMachine().driver_version;
    return cudaSuccess;
  });
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  return Call("cudaGetDeviceCount", Needs::kDriver, [&] {
    *count = TheMachine().devices;
    return cudaSuccess;
  });
}
cudaError_t cudaSetDevice(int device) {
  return Call("cudaSetDevice", Needs::kDriver, [&] {
    if (!IsDevice(device)) return cudaErrorInvalidDevice;
    SetCurrentDevice(device);
    return LostError(device);
  });
}
cudaError_t cudaGetDevice(int* device) {
  return Call("cudaGetDevice", Needs::kDriver, [&] {
    *device = CurrentDevice();
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return Call("cudaDeviceGetAttribute", Needs::kDriver, [&] {
    if (!IsDevice(device)) return cudaErrorInvalidDevice;
    *value = Attribute(attribute);
    return *value < 0 ? cudaErrorInvalidValue : cudaSuccess;
  });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return Call("cudaGetDeviceProperties", Needs::kDriver, [&] {
    if (!IsDevice(device)) return cudaErrorInvalidDevice;
    const Profile& profile = TheProfile();
    std::memset(properties, 0, sizeof(*properties));
    std::snprintf(properties->name, sizeof(properties->name), "CPU as %s", profile.name);
    properties->totalGlobalMem = TheMachine().memory_bytes;
    properties->sharedMemPerBlock = 48 * 1024;
    properties->sharedMemPerBlockOptin = profile.shared_bytes;
    properties->regsPerBlock = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->major = profile.capability / 10;
    properties->minor = profile.capability % 10;
    properties->multiProcessorCount = profile.multiprocessors;
    properties->unifiedAddressing = 1;
    properties->pciBusID = device + 1;
    return cudaSuccess;
  });
}

const char* cudaGetErrorName(cudaError_t error) {
  return TextOf(error).name;
}
const char* cudaGetErrorString(cudaError_t error) {
  return TextOf(error).text;
}
cudaError_t cudaGetLastError() {
  return TakeLastError(false);
}
cudaError_t cudaPeekAtLastError() {
  return TakeLastError(true);
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return Call("cudaMalloc", Needs::kDevice,
              [&] { return Allocate(memory, bytes, CurrentDevice(), TheMachine().memory_bytes); });
}
cudaError_t cudaFree(void* memory) {
  return Call("cudaFree", Needs::kDevice, [&] { return Free(memory, false); });
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return Call("cudaHostAlloc", Needs::kDevice, [&] { return Allocate(memory, bytes, kHost, ~uint64_t{0}); });
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  return Call("cudaMallocHost", Needs::kDevice, [&] { return Allocate(memory, bytes, kHost, ~uint64_t{0}); });
}
cudaError_t cudaFreeHost(void* memory) {
  return Call("cudaFreeHost", Needs::kDevice, [&] { return Free(memory, true); });
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return Call("cudaMemGetInfo", Needs::kDevice, [&] {
    *total = TheMachine().memory_bytes;
    *free = *total - BytesInUse(CurrentDevice());
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return Call("cudaMemcpy", Needs::kDevice, [&] {
    return CopyNow({to, bytes, from, bytes, bytes, 1, kind});
  });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Call("cudaMemcpyAsync", Needs::kDevice, [&] {
    return CopyLater({to, bytes, from, bytes, bytes, 1, kind}, stream);
  });
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                         size_t rows, cudaMemcpyKind kind) {
  return Call("cudaMemcpy2D", Needs::kDevice, [&] {
    return CopyNow({to, to_pitch, from, from_pitch, width, rows, kind});
  });
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t rows, cudaMemcpyKind kind, cudaStream_t stream) {
  return Call("cudaMemcpy2DAsync", Needs::kDevice, [&] {
    return CopyLater({to, to_pitch, from, from_pitch, width, rows, kind}, stream);
  });
}
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  return Call("cudaMemset", Needs::kDevice, [&] {
    if (bytes == 0) return cudaSuccess;
    if (const cudaError_t error = CheckSet(memory, bytes); error != cudaSuccess) return error;
    if (SpoilCaptures()) return cudaErrorStreamCaptureUnsupported;
    const DeviceAccess access;
    SetMemory(memory, value, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return Call("cudaMemsetAsync", Needs::kDevice, [&] {
    if (bytes == 0) return cudaSuccess;
    if (const cudaError_t error = CheckSet(memory, bytes); error != cudaSuccess) return error;
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    const int device = stream->device;
    return cuda_on_cpu::EnqueueWork(stream, [=] {
      if (LostError(device) == cudaSuccess) SetMemory(memory, value, bytes);
    });
  });
}

}  // extern "C"
