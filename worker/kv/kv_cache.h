// Block storage of the KV cache for the layers of one stage. No policy: which sequence owns which block is
// the coordinator's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/kv_type.h"
#include "kernels/paged_attention.h"
#include "worker/device/device.h"

namespace millrace {

// Thread: compute. Host memory is reserved at once and touched on first use, so an idle cache costs address
// space only; that of other devices is taken at once.
class KvCache {
 public:
  struct Shape {
    uint32_t num_layers = 0;
    uint32_t num_blocks = 0;
    uint32_t block_tokens = 0;
    uint32_t kv_heads = 0;
    uint32_t head_size = 0;
    KvType type = KvType::kF32;
    // Of each tensor-parallel shard, `kv_heads` together, none 0; empty: one shard has them all.
    std::vector<uint32_t> shard_kv_heads = {};
    // 2 x layers x block tokens x kv heads x KvHeadBytes; the largest number if it does not fit.
    uint64_t BytesPerBlock() const;
  };
  // INVALID_ARGUMENT: a count of 0, block_tokens not a multiple of kernels::kKeyGroupTokens, or
  // shards that do not have the KV heads together.
  // RESOURCE_EXHAUSTED: the memory is not to be had (more than the machine has, or than may be reserved).
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Shape& shape);
  // The same in the memory of the devices, one for each shard, which outlive the cache. REQUIRES: as many
  // devices as shards.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Shape& shape, DeviceGroup& devices);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // A shard's blocks of one of this stage's layers, `layer` counted from the stage's first. Each shard's
  // memory is a region of its own. REQUIRES: layer < num_layers, shard is one of the shards.
  kernels::PagedKv Layer(uint32_t layer, uint32_t shard = 0) const;
  uint64_t ShardBytes(uint32_t shard) const;
  const Shape& shape() const { return shape_; }
  // No other cache of this process has or had it.
  uint64_t id() const { return id_; }

 private:
  // Of one layer of one shard: all key blocks, their scales, all value blocks, their scales, so that
  // attention walks dense regions. Bytes; each begins on a cache line.
  struct Regions {
    uint64_t kv_heads = 0;
    uint64_t elements = 0;  // of the keys, or of the values
    uint64_t scales = 0;
    uint64_t begin = 0;  // of the shard's first layer in host memory; its others follow
    uint64_t layer() const { return 2 * (elements + scales); }
  };
  // By shard; nothing if they take more than `most` bytes.
  static std::optional<std::vector<Regions>> RegionsOf(const Shape& shape, uint64_t most);

  KvCache(const Shape& shape, std::vector<Regions> regions);
  absl::Status MapHostMemory();
  absl::Status TakeDeviceMemory(DeviceGroup& devices);
  const Shape shape_;
  const uint64_t id_;
  const std::vector<Regions> regions_;
  std::vector<uint8_t*> shard_memory_;  // where each shard's first layer begins
  std::vector<DeviceMemory> memory_;
};

}  // namespace millrace
