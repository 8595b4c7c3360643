// Collectives of shards that are threads of one process: they meet in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/device/collective.h"
#include "worker/device/cpu/host_memory.h"
#include "worker/device/cpu/shard_barrier.h"
#include "worker/device/device.h"

namespace millrace {

// Owns the shards' ends and the memory of the partial sums. An AllReduce costs two meetings: one before the
// partial sums are read, one before anyone goes on; each shard adds its part of the columns.
class SharedMemoryGroup final : public CollectiveGroup {
 public:
  // One shard for each of `backends`, which add the sums and outlive this. RESOURCE_EXHAUSTED: not enough
  // memory.
  static absl::StatusOr<std::unique_ptr<SharedMemoryGroup>> Create(
      absl::Span<const kernels::Backend* const> backends, const CollectiveOptions& options);

  Collective& shard(size_t rank) override { return *ends_[rank]; }
  uint64_t bytes() const override { return partials_.bytes(); }

 private:
  class End;
  SharedMemoryGroup(uint32_t shards, const CollectiveOptions& options);

  const CollectiveOptions options_;
  ShardBarrier barrier_;
  HostMemory partials_;  // [segments, partial stride]
  std::vector<std::unique_ptr<Collective>> ends_;
};

}  // namespace millrace
