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

namespace millrace {

struct SharedMemoryGroupOptions {
  uint32_t segments = 0;  // at least 1
  uint32_t max_rows = 0;  // of one AllReduce
  uint32_t columns = 0;   // at most, of one AllReduce
};

// Owns the shards' ends and the memory of the partial sums. An AllReduce costs two meetings: one before the
// partial sums are read, one before anyone goes on; each shard adds its part of the columns.
class SharedMemoryGroup {
 public:
  // One shard for each of `backends`, which add the sums and outlive this. RESOURCE_EXHAUSTED: not enough
  // memory.
  static absl::StatusOr<std::unique_ptr<SharedMemoryGroup>> Create(
      absl::Span<const kernels::Backend* const> backends, const SharedMemoryGroupOptions& options);

  Collective& shard(size_t rank) { return *ends_[rank]; }
  uint64_t bytes() const { return partials_.bytes(); }

 private:
  class End;
  SharedMemoryGroup(uint32_t shards, const SharedMemoryGroupOptions& options);

  const SharedMemoryGroupOptions options_;
  ShardBarrier barrier_;
  HostMemory partials_;  // [segments, partial stride]
  std::vector<std::unique_ptr<Collective>> ends_;
};

}  // namespace millrace
