#include "worker/kv/kv_cache.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

std::optional<uint64_t> Product(std::initializer_list<uint64_t> factors) {
  uint64_t product = 1;
  for (uint64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) return std::nullopt;
  }
  return product;
}

// No page can ever be had beyond the machine's memory, whatever the kernel promises.
uint64_t MachineMemoryBytes() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page_bytes = sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page_bytes <= 0) return std::numeric_limits<int64_t>::max();
  return static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_bytes);
}

absl::Status CheckShape(const KvCache::Shape& shape) {
  if (shape.num_layers == 0 || shape.num_blocks == 0 || shape.kv_heads == 0 || shape.head_size == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV cache: layers ", shape.num_layers, ", blocks ", shape.num_blocks, ", KV heads ",
                     shape.kv_heads, ", head size ", shape.head_size, ": each must be at least 1"));
  }
  if (shape.block_tokens == 0 || shape.block_tokens % kernels::kKeyGroupTokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("KV cache: ", shape.block_tokens,
                                                   " tokens a block; must be a multiple of ",
                                                   kernels::kKeyGroupTokens));
  }
  uint64_t heads = 0;
  for (uint32_t of_shard : shape.shard_kv_heads) {
    if (of_shard == 0) return absl::InvalidArgumentError("KV cache: a shard without KV heads");
    heads += of_shard;
  }
  if (!shape.shard_kv_heads.empty() && heads != shape.kv_heads) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV cache: shards with ", heads, " KV heads together, of ", shape.kv_heads));
  }
  return absl::OkStatus();
}

uint64_t NextId() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

kernels::KvType KernelType(KvType type) {
  switch (type) {
    case KvType::kF16:
      return kernels::KvType::kF16;
    case KvType::kI8:
      return kernels::KvType::kI8;
    case KvType::kF32:
      break;
  }
  return kernels::KvType::kF32;
}

}  // namespace

std::optional<std::vector<KvCache::Regions>> KvCache::RegionsOf(const Shape& shape, uint64_t most) {
  constexpr uint64_t kCacheLine = 64;
  const uint64_t element_bytes = kernels::KvElementBytes(KernelType(shape.type));
  std::vector<uint32_t> shards = shape.shard_kv_heads;
  if (shards.empty()) shards.push_back(shape.kv_heads);
  std::vector<Regions> all;
  uint64_t begin = 0;
  for (uint32_t kv_heads : shards) {
    const std::optional<uint64_t> positions = Product({shape.num_blocks, shape.block_tokens, kv_heads});
    if (!positions.has_value()) return std::nullopt;
    const std::optional<uint64_t> elements = Product({*positions, shape.head_size, element_bytes});
    const std::optional<uint64_t> scales =
        Product({*positions, shape.type == KvType::kI8 ? sizeof(float) : 0});
    if (!elements.has_value() || !scales.has_value() || *elements > most || *scales > most) {
      return std::nullopt;
    }
    // Blocks are of whole groups of 16 positions, so scales fill whole cache lines.
    all.push_back({kv_heads, (*elements + kCacheLine - 1) / kCacheLine * kCacheLine, *scales, begin});
    const std::optional<uint64_t> bytes = Product({all.back().layer(), shape.num_layers});
    if (!bytes.has_value() || *bytes > most - begin) return std::nullopt;
    begin += *bytes;
  }
  return all;
}

uint64_t KvCache::Shape::BytesPerBlock() const {
  return Product({2, num_layers, block_tokens, kv_heads, KvHeadBytes(type, head_size)})
      .value_or(std::numeric_limits<uint64_t>::max());
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const Shape& shape) {
  RETURN_IF_ERROR(CheckShape(shape));
  std::optional<std::vector<Regions>> regions = RegionsOf(shape, MachineMemoryBytes());
  if (!regions.has_value()) {
    return absl::ResourceExhaustedError(absl::StrCat("KV cache: ", shape.num_blocks, " blocks of ",
                                                     shape.BytesPerBlock(), " bytes; this machine has ",
                                                     MachineMemoryBytes(), " bytes; use fewer blocks"));
  }
  std::unique_ptr<KvCache> cache(new KvCache(shape, *std::move(regions)));
  RETURN_IF_ERROR(cache->MapHostMemory());
  return cache;
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const Shape& shape, DeviceGroup& devices) {
  if (devices.device(0).on_host()) return Create(shape);
  MILLRACE_CHECK(std::max<size_t>(shape.shard_kv_heads.size(), 1) == devices.size());
  RETURN_IF_ERROR(CheckShape(shape));
  std::optional<std::vector<Regions>> regions = RegionsOf(shape, std::numeric_limits<int64_t>::max());
  if (!regions.has_value()) {
    return absl::ResourceExhaustedError(absl::StrCat("KV cache: ", shape.num_blocks, " blocks of ",
                                                     shape.BytesPerBlock(), " bytes; use fewer blocks"));
  }
  std::unique_ptr<KvCache> cache(new KvCache(shape, *std::move(regions)));
  RETURN_IF_ERROR(cache->TakeDeviceMemory(devices));
  return cache;
}

KvCache::KvCache(const Shape& shape, std::vector<Regions> regions)
    : shape_(shape), id_(NextId()), regions_(std::move(regions)) {}

absl::Status KvCache::MapHostMemory() {
  const uint64_t bytes = regions_.back().begin + regions_.back().layer() * shape_.num_layers;
  void* memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    return absl::ResourceExhaustedError(
        absl::StrCat("KV cache: cannot reserve ", bytes, " bytes: ", strerror(error), "; use fewer blocks"));
  }
  memory_.emplace_back(static_cast<uint8_t*>(memory), bytes, [bytes](uint8_t* data) { munmap(data, bytes); });
  for (const Regions& shard : regions_) shard_memory_.push_back(memory_.front().data() + shard.begin);
  return absl::OkStatus();
}

absl::Status KvCache::TakeDeviceMemory(DeviceGroup& devices) {
  for (uint32_t shard = 0; shard < devices.size(); ++shard) {
    ASSIGN_OR_RETURN(DeviceMemory memory, devices.device(shard).Allocate("KV cache", ShardBytes(shard)));
    shard_memory_.push_back(memory.data());
    memory_.push_back(std::move(memory));
  }
  return absl::OkStatus();
}

uint64_t KvCache::ShardBytes(uint32_t shard) const {
  MILLRACE_CHECK(shard < regions_.size());
  return regions_[shard].layer() * shape_.num_layers;
}

kernels::PagedKv KvCache::Layer(uint32_t layer, uint32_t shard) const {
  MILLRACE_CHECK(layer < shape_.num_layers && shard < regions_.size());
  const Regions& regions = regions_[shard];
  kernels::PagedKv kv;
  kv.key_blocks = shard_memory_[shard] + regions.layer() * layer;
  kv.value_blocks = kv.key_blocks + regions.layer() / 2;
  if (shape_.type == KvType::kI8) {
    kv.key_scales = reinterpret_cast<float*>(kv.key_blocks + regions.elements);
    kv.value_scales = reinterpret_cast<float*>(kv.value_blocks + regions.elements);
  }
  kv.type = KernelType(shape_.type);
  kv.block_tokens = shape_.block_tokens;
  kv.kv_heads = regions.kv_heads;
  kv.head_size = shape_.head_size;
  return kv;
}

}  // namespace millrace
