#include "worker/device/cpu/host_devices.h"

#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "worker/device/cpu/host_memory.h"
#include "worker/device/cpu/shared_memory_collective.h"

namespace millrace {

class HostDevices::HostDevice final : public Device {
 public:
  explicit HostDevice(const kernels::Backend& backend) : backend_(backend) {}

  std::string name() const override { return backend_.name(); }
  const kernels::Backend& ops() const override { return backend_; }
  bool on_host() const override { return true; }
  void Enter() override { backend_.PinCaller(); }

  absl::StatusOr<DeviceMemory> Allocate(absl::string_view what, uint64_t bytes) override {
    ASSIGN_OR_RETURN(HostMemory memory, HostMemory::Allocate(what, bytes));
    uint8_t* const data = memory.data();
    return DeviceMemory(data, bytes, [owner = std::make_shared<HostMemory>(std::move(memory))](uint8_t*) {});
  }
  absl::StatusOr<DeviceMemory> AllocateStaging(absl::string_view what, uint64_t bytes) override {
    return Allocate(what, bytes);
  }
  uint64_t FreeBytes() const override { return AvailableMemoryBytes(); }

  void CopyIn(void* to, const void* from_staging, uint64_t bytes) override {
    std::memcpy(to, from_staging, bytes);
  }
  void CopyRows(const Rows& /*rows*/) override { MILLRACE_CHECK(false); }
  void CopyOut(void* to_staging, const void* from, uint64_t bytes) override {
    std::memcpy(to_staging, from, bytes);
  }
  absl::Status Finish() override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<CapturedWork>> Capture(absl::FunctionRef<absl::Status()>) override {
    return nullptr;
  }
  void Replay(const CapturedWork&) override { MILLRACE_CHECK(false); }

 private:
  const kernels::Backend& backend_;
};

HostDevices::HostDevices(std::vector<std::unique_ptr<kernels::Backend>> backends)
    : owned_(std::move(backends)) {
  for (const std::unique_ptr<kernels::Backend>& backend : owned_) backends_.push_back(backend.get());
  MakeDevices();
}

HostDevices::HostDevices(absl::Span<const kernels::Backend* const> backends)
    : backends_(backends.begin(), backends.end()) {
  MakeDevices();
}

HostDevices::~HostDevices() = default;

void HostDevices::MakeDevices() {
  MILLRACE_CHECK(!backends_.empty());
  for (const kernels::Backend* backend : backends_)
    devices_.push_back(std::make_unique<HostDevice>(*backend));
}

uint32_t HostDevices::size() const {
  return static_cast<uint32_t>(devices_.size());
}

Device& HostDevices::device(uint32_t shard) {
  MILLRACE_CHECK(shard < devices_.size());
  return *devices_[shard];
}

std::string HostDevices::numeric_class() const {
  return backends_.front()->numeric_class();
}

const kernels::Backend& HostDevices::host_ops() const {
  return *backends_.front();
}

absl::StatusOr<std::unique_ptr<CollectiveGroup>> HostDevices::MakeCollectives(
    const CollectiveOptions& options) {
  return SharedMemoryGroup::Create(backends_, options);
}

}  // namespace millrace
