// Bytes that end where a page without access begins, so that reading past them ends the test even without a
// sanitizer.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "absl/types/span.h"
#include "common/check.h"

namespace millrace {

// Thread: one.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t capacity) {
    const size_t page = sysconf(_SC_PAGESIZE);
    usable_ = (capacity + page - 1) / page * page;
    mapped_ = usable_ + page;
    void* address = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MILLRACE_CHECK(address != MAP_FAILED);
    base_ = static_cast<uint8_t*>(address);
    MILLRACE_CHECK(mprotect(base_ + usable_, page, PROT_NONE) == 0);
  }
  ~GuardedBytes() { munmap(base_, mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  // A copy of `bytes`, good until the next call. REQUIRES: at most the capacity.
  absl::Span<const uint8_t> Hold(absl::Span<const uint8_t> bytes) {
    MILLRACE_CHECK(bytes.size() <= usable_);
    uint8_t* place = base_ + usable_ - bytes.size();
    if (!bytes.empty()) std::memcpy(place, bytes.data(), bytes.size());
    return {place, bytes.size()};
  }

 private:
  uint8_t* base_ = nullptr;
  size_t usable_ = 0;
  size_t mapped_ = 0;
};

}  // namespace millrace
