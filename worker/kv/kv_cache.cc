#include "worker/kv/kv_cache.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <limits>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

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
  return absl::OkStatus();
}

}  // namespace

uint64_t KvCache::Shape::BytesPerBlock() const {
  return Product({2, num_layers, block_tokens, kv_heads, head_size, sizeof(float)})
      .value_or(std::numeric_limits<uint64_t>::max());
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const Shape& shape) {
  if (absl::Status status = CheckShape(shape); !status.ok()) return status;
  const std::optional<uint64_t> bytes = Product({shape.BytesPerBlock(), shape.num_blocks});
  if (!bytes.has_value() || *bytes > MachineMemoryBytes()) {
    return absl::ResourceExhaustedError(absl::StrCat("KV cache: ", shape.num_blocks, " blocks of ",
                                                     shape.BytesPerBlock(), " bytes; this machine has ",
                                                     MachineMemoryBytes(), " bytes; use fewer blocks"));
  }
  void* memory =
      mmap(nullptr, *bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    return absl::ResourceExhaustedError(
        absl::StrCat("KV cache: cannot reserve ", *bytes, " bytes: ", strerror(error), "; use fewer blocks"));
  }
  return std::unique_ptr<KvCache>(new KvCache(shape, memory, *bytes));
}

KvCache::KvCache(const Shape& shape, void* memory, size_t bytes)
    : shape_(shape), memory_(memory), bytes_(bytes) {}

KvCache::~KvCache() {
  munmap(memory_, bytes_);
}

kernels::PagedKv KvCache::Layer(uint32_t layer) const {
  MILLRACE_CHECK(layer < shape_.num_layers);
  // Layer by layer, all key blocks and then all value blocks: a layer's attention walks two dense regions.
  const size_t region = bytes_ / sizeof(float) / shape_.num_layers / 2;
  kernels::PagedKv kv;
  kv.key_blocks = static_cast<float*>(memory_) + 2 * region * layer;
  kv.value_blocks = kv.key_blocks + region;
  kv.block_tokens = shape_.block_tokens;
  kv.kv_heads = shape_.kv_heads;
  kv.head_size = shape_.head_size;
  return kv;
}

}  // namespace millrace
