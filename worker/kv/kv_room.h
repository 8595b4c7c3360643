// How many blocks of KV cache fit in what devices have free.
#pragma once

#include <cstdint>

#include "worker/device/device.h"
#include "worker/kv/kv_cache.h"

namespace millrace {

// Left free of each shard's part of a device: what the driver takes for launches larger than those that ran
// at load (local memory, printf and malloc heaps), and what the rounding of allocations to pages of 2 MiB
// costs.
inline constexpr uint64_t kDeviceReserveBytes = uint64_t{256} << 20;

// Whole blocks, of all shards together, that fit beside the reserve in what each device has free, and in
// `limit` bytes together. `shape` is the cache's, num_blocks aside. REQUIRES: a shard for each device, none
// of which is on the host.
uint64_t DeviceKvBlocks(DeviceGroup& devices, const KvCache::Shape& shape, uint64_t limit);

}  // namespace millrace
