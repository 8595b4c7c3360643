#include "worker/device/cpu/host_memory.h"

#include <sys/mman.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/options.h"
#include "common/process.h"

namespace millrace {
namespace {

constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;

}  // namespace

absl::StatusOr<HostMemory> HostMemory::Allocate(absl::string_view what, uint64_t bytes) {
  if (bytes == 0) return HostMemory();
  const uint64_t available = AvailableMemoryBytes();
  if (available != 0 && bytes > available) {
    return absl::ResourceExhaustedError(absl::StrCat(what, ": ", FormatBytes(bytes),
                                                     " of memory are needed, of which ",
                                                     FormatBytes(available), " are free"));
  }
  uint64_t mapped = 0;
  void* mapping = MAP_FAILED;
  if (!__builtin_add_overflow(bytes, kHugePageBytes, &mapped)) {
    mapping =
        mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (mapping == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": ", FormatBytes(bytes), " of memory cannot be reserved"));
  }
  const uintptr_t begin = reinterpret_cast<uintptr_t>(mapping);
  const uintptr_t aligned = (begin + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  auto* data = reinterpret_cast<uint8_t*>(aligned);
  // Where there are none, small pages do.
  (void)madvise(data, bytes, MADV_HUGEPAGE);
  return HostMemory(mapping, mapped, data, bytes);
}

HostMemory::~HostMemory() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_);
}

HostMemory::HostMemory(HostMemory&& other) noexcept {
  *this = std::move(other);
}

HostMemory& HostMemory::operator=(HostMemory&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace millrace
