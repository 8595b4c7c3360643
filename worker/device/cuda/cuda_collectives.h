// Collectives of CUDA shards: threads of one process, each with a stream of its own.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/cuda/cuda_queue.h"
#include "worker/device/cuda/watchdog.h"
#include "worker/device/cuda_devices.h"
#include "worker/device/device.h"

namespace millrace {

struct CudaCollectiveOptions {
  CollectiveOptions sizes;
  // kAllReduce: bits depend on the number of shards, and on NCCL.
  CudaCollectiveKind kind = CudaCollectiveKind::kOrdered;
  CudaWatchdog* watchdog = nullptr;                  // told of errors if not null; outlives the group
  absl::Duration init_limit = absl::Seconds(60);     // until all shards have met
  absl::Duration enqueue_limit = absl::Seconds(30);  // until NCCL has taken one sum
  absl::Duration finalize_limit = absl::Seconds(5);
  absl::Duration abort_limit = absl::Seconds(2);
};

// Destroyed after what was captured with it, and before the streams. The sums' memory is allocated when it is
// made.
class CudaCollectiveGroup : public CollectiveGroup {
 public:
  // Whether AllReduce may be recorded into a CUDA graph.
  virtual bool capturable() const = 0;
};

// One shard for each of `queues`, at least 2, which outlive the group and are each of another device: joined
// by NCCL. Thread: any one; the calling thread's device stays what it was. RESOURCE_EXHAUSTED: not enough
// memory on a device. UNAVAILABLE: NCCL failed, or took longer than init_limit; says on which shard and
// device.
absl::StatusOr<std::unique_ptr<CudaCollectiveGroup>> MakeNcclCollectives(
    absl::Span<const kernels::cuda::CudaQueue* const> queues, const CudaCollectiveOptions& options);

// Likewise for queues that are all of one device, which NCCL refuses: the sums meet in the device's memory,
// always in order. Shards wait for each other on the host, so nothing can be captured.
absl::StatusOr<std::unique_ptr<CudaCollectiveGroup>> MakeLocalCollectives(
    absl::Span<const kernels::cuda::CudaQueue* const> queues, const CudaCollectiveOptions& options);

}  // namespace millrace
