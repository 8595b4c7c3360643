// What a worker asks of libmillrace_cuda.so and hears from it, without CUDA's types.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/backend.h"
#include "worker/device/device.h"

namespace millrace {

// How the shards of a stage add their partial sums.
enum class CudaCollectiveKind {
  kOrdered,    // in segment order: the bits of one shard, whatever the number of shards
  kAllReduce,  // by ncclAllReduce, in NCCL's order
};

struct CudaDevicesOptions {
  std::vector<int> devices;  // one for each shard, as the runtime counts; the same one may come again
  CudaCollectiveKind collective = CudaCollectiveKind::kOrdered;
  absl::Duration watchdog = absl::Seconds(30);       // a microbatch that takes longer ends the process
  std::shared_ptr<const kernels::Backend> host_ops;  // DeviceGroup::host_ops
};

struct CudaDeviceInfo {
  std::string name;    // "NVIDIA H100 80GB HBM3"
  int capability = 0;  // 10 * major + minor
  uint64_t memory_bytes = 0;
  uint64_t cublas_version = 0;  // of cuBLASLt: 10000 * major + 100 * minor + patch; 0: there is none
};

// What the library exports, as MillraceCuda: both sides are compiled from the same headers, which build_id
// tells; nothing else may be touched before it has been compared.
struct CudaEntryPoints {
  const char* build_id;
  // Every device that is visible, those that cannot serve too. FAILED_PRECONDITION: there is no driver, it is
  // too old, or no device is visible.
  absl::StatusOr<std::vector<CudaDeviceInfo>> (*list_devices)();
  // FAILED_PRECONDITION: a device is not there or cannot serve, or several need NCCL and it is not there.
  // RESOURCE_EXHAUSTED: not enough memory.
  absl::StatusOr<std::unique_ptr<DeviceGroup>> (*open)(const CudaDevicesOptions& options);
};

inline constexpr char kCudaEntryPointsName[] = "MillraceCuda";
inline constexpr int kCudaLeastCapability = 80;

}  // namespace millrace
