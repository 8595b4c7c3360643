#include "tests/unit/stage/far_devices.h"

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace millrace::testing {
namespace {

using Blocks = std::map<const uint8_t*, uint64_t>;

bool In(const Blocks& blocks, const void* data, uint64_t bytes) {
  const auto* const begin = static_cast<const uint8_t*>(data);
  auto after = blocks.upper_bound(begin);
  if (after == blocks.begin()) return false;
  --after;
  return begin + bytes <= after->first + after->second;
}

class FarDevice final : public Device {
 public:
  FarDevice(const kernels::Backend& backend, FarMemory* memory) : backend_(backend), memory_(memory) {}

  std::string name() const override { return "far"; }
  const kernels::Backend& ops() const override { return backend_; }
  bool on_host() const override { return false; }
  void Enter() override {}
  absl::StatusOr<DeviceMemory> Allocate(absl::string_view what, uint64_t bytes) override {
    return Take(what, bytes, memory_->live);
  }
  absl::StatusOr<DeviceMemory> AllocateStaging(absl::string_view what, uint64_t bytes) override {
    return Take(what, bytes, memory_->staging);
  }
  uint64_t FreeBytes() const override { return memory_->free; }
  void CopyIn(void* to, const void* from_staging, uint64_t bytes) override {
    memory_->misplaced += In(memory_->live, to, bytes) && In(memory_->staging, from_staging, bytes) ? 0 : 1;
    std::memcpy(to, from_staging, bytes);
  }
  void CopyOut(void* to_staging, const void* from, uint64_t bytes) override {
    memory_->misplaced += In(memory_->staging, to_staging, bytes) && In(memory_->live, from, bytes) ? 0 : 1;
    std::memcpy(to_staging, from, bytes);
  }
  void CopyRows(const Rows& rows) override {
    for (uint64_t i = 0; i < rows.rows; ++i) {
      uint8_t* const to = static_cast<uint8_t*>(rows.to) + i * rows.to_stride;
      const uint8_t* const from = static_cast<const uint8_t*>(rows.from) + i * rows.from_stride;
      memory_->misplaced += In(memory_->live, to, rows.bytes) && In(memory_->live, from, rows.bytes) ? 0 : 1;
      std::memcpy(to, from, rows.bytes);
    }
  }
  absl::Status Finish() override { return memory_->status; }
  absl::StatusOr<std::unique_ptr<CapturedWork>> Capture(absl::FunctionRef<absl::Status()>) override {
    return nullptr;
  }
  void Replay(const CapturedWork&) override { std::abort(); }

 private:
  absl::StatusOr<DeviceMemory> Take(absl::string_view what, uint64_t bytes, Blocks& blocks) {
    if (memory_->allocations++ == memory_->fails) {
      memory_->failed = std::string(what);
      return absl::ResourceExhaustedError(absl::StrCat(what, ": no memory"));
    }
    auto* const data = static_cast<uint8_t*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
    std::memset(data, 0, bytes);
    blocks.emplace(data, bytes);
    return DeviceMemory(data, bytes, [&blocks](uint8_t* memory) {
      blocks.erase(memory);
      std::free(memory);
    });
  }

  const kernels::Backend& backend_;
  FarMemory* const memory_;
};

class FarDevices final : public DeviceGroup {
 public:
  FarDevices(const kernels::Backend& backend, FarMemory* memory)
      : backend_(backend), device_(backend, memory) {}
  uint32_t size() const override { return 1; }
  Device& device(uint32_t) override { return device_; }
  std::string numeric_class() const override { return backend_.numeric_class(); }
  const kernels::Backend& host_ops() const override { return backend_; }
  absl::StatusOr<std::unique_ptr<CollectiveGroup>> MakeCollectives(const CollectiveOptions&) override {
    return absl::UnimplementedError("one shard");
  }

 private:
  const kernels::Backend& backend_;
  FarDevice device_;
};

}  // namespace

std::unique_ptr<DeviceGroup> MakeFarDevices(const kernels::Backend& backend, FarMemory* memory) {
  return std::make_unique<FarDevices>(backend, memory);
}

}  // namespace millrace::testing
