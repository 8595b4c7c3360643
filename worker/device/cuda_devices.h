// What a worker asks of CUDA devices, without CUDA's types.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace millrace {

// How the shards of a stage add their partial sums.
enum class CudaCollectiveKind {
  kOrdered,    // in segment order: the bits of one shard, whatever the number of shards
  kAllReduce,  // by ncclAllReduce, in NCCL's order
};

struct CudaDevicesOptions {
  std::vector<int> devices;  // one for each shard, as the runtime counts; the same one may come again
  CudaCollectiveKind collective = CudaCollectiveKind::kOrdered;
  absl::Duration watchdog = absl::Seconds(30);  // a microbatch that takes longer ends the process
  size_t host_threads = 1;                      // that embed tokens
};

struct CudaDeviceInfo {
  std::string name;          // "NVIDIA H100 80GB HBM3"
  int capability = 0;        // 10 * major + minor
  uint64_t memory_bytes = 0;
};

}  // namespace millrace
