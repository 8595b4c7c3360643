#include "worker/kv/kv_room.h"

#include <algorithm>

#include "common/check.h"

namespace millrace {

uint64_t DeviceKvBlocks(DeviceGroup& devices, const KvCache::Shape& shape, uint64_t limit) {
  MILLRACE_CHECK(std::max<size_t>(shape.shard_kv_heads.size(), 1) == devices.size());
  const uint64_t block_bytes = shape.BytesPerBlock();
  uint64_t blocks = limit / block_bytes;
  for (uint32_t shard = 0; shard < devices.size(); ++shard) {
    const uint64_t heads = shape.shard_kv_heads.empty() ? shape.kv_heads : shape.shard_kv_heads[shard];
    const uint64_t free = devices.device(shard).FreeBytes();
    blocks = std::min(blocks,
                      (free - std::min(free, kDeviceReserveBytes)) / (block_bytes / shape.kv_heads * heads));
  }
  return blocks;
}

}  // namespace millrace
