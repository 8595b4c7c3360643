// What a shard runs on: memory, a queue of work, the ops that work in that memory. One layer implementation
// (worker/stage) serves every kind through it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"
#include "worker/device/collective.h"

namespace millrace {

// Owns bytes of a device's memory, or of host memory that it copies from and to. Aligned to 256 bytes at
// least. The device outlives it. Thread: the owner's.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // `release` gives `data` back.
  DeviceMemory(uint8_t* data, uint64_t bytes, std::function<void(uint8_t*)> release)
      : data_(data), bytes_(bytes), release_(std::move(release)) {}
  ~DeviceMemory() { Reset(); }
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    if (this == &other) return *this;
    Reset();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    release_ = std::exchange(other.release_, nullptr);
    return *this;
  }

  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void Reset() {
    if (release_ != nullptr) release_(data_);
    release_ = nullptr;
  }
  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
  std::function<void(uint8_t*)> release_;
};

// Work that was enqueued once and can be enqueued again as it is. The device outlives it.
class CapturedWork {
 public:
  virtual ~CapturedWork() = default;
};

// What a device is given to do, for people and for whoever watches that it ends.
struct WorkName {
  uint32_t stage = 0;
  uint64_t microbatch = 0;
};

// Thread: the shard's, after Enter. Nothing that is enqueued fails at once: Finish tells.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // for people: "NVIDIA H100 80GB HBM3, device 0", "avx512vnni"
  virtual const kernels::Backend& ops() const = 0;
  // Ops work in ordinary host memory, and are done when they return: nothing need be copied.
  virtual bool on_host() const = 0;

  // Makes the calling thread the shard's: once for each thread where ops work in host memory, otherwise
  // whenever the thread may have been another shard's.
  virtual void Enter() = 0;

  // Memory of ops, zero at first. RESOURCE_EXHAUSTED, naming `what`: more than is free, or than may be
  // reserved. Thread: any, as for AllocateStaging.
  virtual absl::StatusOr<DeviceMemory> Allocate(absl::string_view what, uint64_t bytes) = 0;
  // Host memory for CopyIn and CopyOut, likewise.
  virtual absl::StatusOr<DeviceMemory> AllocateStaging(absl::string_view what, uint64_t bytes) = 0;
  // That Allocate may give now, a guess; this shard's part where several share a device. Thread: any.
  virtual uint64_t FreeBytes() const = 0;

  // What is enqueued from now on, until Finish, is this.
  virtual void Begin(const WorkName& /*work*/) {}

  // Enqueued between host memory of AllocateStaging, untouched until done, and memory of Allocate.
  virtual void CopyIn(void* to, const void* from_staging, uint64_t bytes) = 0;
  virtual void CopyOut(void* to_staging, const void* from, uint64_t bytes) = 0;

  // Enqueued: rows of `bytes` from this shard's memory to that of any shard of the group, strides in bytes.
  // Whoever reads them there waits for this device's Finish. REQUIRES: !on_host().
  struct Rows {
    void* to = nullptr;
    uint64_t to_stride = 0;
    const void* from = nullptr;
    uint64_t from_stride = 0;
    uint64_t bytes = 0;
    uint64_t rows = 0;
  };
  virtual void CopyRows(const Rows& rows) = 0;

  // Waits until all that was enqueued is done. The first error of any of it: the device is lost then, and
  // only destructors may follow.
  virtual absl::Status Finish() = 0;

  // Records what `enqueue` enqueues (ops and collectives; nothing runs); null: this device, or its
  // collective, cannot. All shards of a group capture the same work at the same time. An error of `enqueue`,
  // or of recording.
  virtual absl::StatusOr<std::unique_ptr<CapturedWork>> Capture(
      absl::FunctionRef<absl::Status()> enqueue) = 0;
  virtual void Replay(const CapturedWork& work) = 0;
};

struct CollectiveOptions {
  uint32_t segments = 0;  // at least 1
  uint32_t max_rows = 0;  // of one AllReduce
  uint32_t columns = 0;   // at most, of one AllReduce
};

// The collectives of one stage, one end for each shard.
class CollectiveGroup {
 public:
  virtual ~CollectiveGroup() = default;
  virtual Collective& shard(size_t rank) = 0;
  virtual uint64_t bytes() const = 0;  // of partial sums, of all shards together
};

// The devices of a worker's shards. They outlive what is made of them. Thread: any, one at a time.
class DeviceGroup {
 public:
  virtual ~DeviceGroup() = default;
  virtual uint32_t size() const = 0;  // at least 1
  virtual Device& device(uint32_t shard) = 0;
  // Results have equal bits between workers whose class is equal: "cpu/int8", "cuda/sm_90/int8".
  virtual std::string numeric_class() const = 0;
  // For embedding tokens, which every device leaves to the host.
  virtual const kernels::Backend& host_ops() const = 0;

  // REQUIRES: size() > 1. RESOURCE_EXHAUSTED: not enough memory. UNAVAILABLE: the devices do not reach each
  // other.
  virtual absl::StatusOr<std::unique_ptr<CollectiveGroup>> MakeCollectives(
      const CollectiveOptions& options) = 0;
};

}  // namespace millrace
