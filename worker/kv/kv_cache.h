// Block storage of the KV cache for the layers of one stage. No policy: which sequence owns which block is
// the coordinator's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "common/kv_type.h"
#include "kernels/paged_attention.h"

namespace millrace {

// Thread: compute. Memory is reserved at once and touched on first use, so an idle cache costs address space
// only.
class KvCache {
 public:
  struct Shape {
    uint32_t num_layers = 0;
    uint32_t num_blocks = 0;
    uint32_t block_tokens = 0;
    uint32_t kv_heads = 0;
    uint32_t head_size = 0;
    KvType type = KvType::kF32;
    // 2 x layers x block tokens x kv heads x KvHeadBytes; the largest number if it does not fit.
    uint64_t BytesPerBlock() const;
  };
  // INVALID_ARGUMENT: a count of 0, or block_tokens not a multiple of kernels::kKeyGroupTokens.
  // RESOURCE_EXHAUSTED: the memory is not to be had (more than the machine has, or than may be reserved).
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Shape& shape);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // The blocks of one of this stage's layers, `layer` counted from the stage's first. REQUIRES: layer <
  // num_layers.
  kernels::PagedKv Layer(uint32_t layer) const;
  const Shape& shape() const { return shape_; }

 private:
  // Of one layer: all key blocks, their scales, all value blocks, their scales, so that attention walks dense
  // regions. Bytes; each begins on a cache line.
  struct Regions {
    uint64_t elements = 0;  // of the keys, or of the values
    uint64_t scales = 0;
    uint64_t layer() const { return 2 * (elements + scales); }
  };
  static std::optional<Regions> RegionsOf(const Shape& shape);  // nothing if no machine has so much

  KvCache(const Shape& shape, const Regions& regions, uint8_t* memory);
  const Shape shape_;
  const Regions regions_;
  uint8_t* const memory_;
};

}  // namespace millrace
