// Large memory of one shard, in large pages where the system gives them.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace {

// Owns bytes that are zero at first and become real where and when they are first touched, by the memory of
// the core that touches them. Aligned to 2 MiB. Thread: the owner's.
class HostMemory {
 public:
  HostMemory() = default;
  // `bytes` 0 gives no memory. RESOURCE_EXHAUSTED, naming `what`: more than is free now, or than may be
  // reserved.
  static absl::StatusOr<HostMemory> Allocate(absl::string_view what, uint64_t bytes);
  ~HostMemory();
  HostMemory(HostMemory&& other) noexcept;
  HostMemory& operator=(HostMemory&& other) noexcept;

  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  HostMemory(void* mapping, uint64_t mapped, uint8_t* data, uint64_t bytes)
      : mapping_(mapping), mapped_(mapped), data_(data), bytes_(bytes) {}

  void* mapping_ = nullptr;
  uint64_t mapped_ = 0;
  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace millrace
