#include "worker/device/cuda/cuda_device_group.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/device/cuda/cuda_collectives.h"
#include "worker/device/cuda/cuda_device.h"
#include "worker/device/cuda/watchdog.h"

namespace millrace {
namespace {

class CudaDeviceGroup final : public DeviceGroup {
 public:
  explicit CudaDeviceGroup(const CudaDevicesOptions& options) : options_(options) {}

  absl::Status Open() {
    if (options_.watchdog > absl::ZeroDuration()) {
      WatchdogOptions watchdog;
      watchdog.shards = static_cast<uint32_t>(options_.devices.size());
      watchdog_ = std::make_unique<CudaWatchdog>(std::move(watchdog));
    }
    for (size_t shard = 0; shard < options_.devices.size(); ++shard) {
      CudaDeviceOptions device;
      device.ordinal = options_.devices[shard];
      device.shard = static_cast<uint32_t>(shard);
      device.sharers = Sharers(device.ordinal);
      device.watchdog = watchdog_.get();
      device.work_limit = options_.watchdog;
      ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> made, CudaDevice::Create(device));
      devices_.push_back(std::move(made));
    }
    return CheckAlike();
  }

  uint32_t size() const override { return static_cast<uint32_t>(devices_.size()); }
  Device& device(uint32_t shard) override {
    MILLRACE_CHECK(shard < devices_.size());
    return *devices_[shard];
  }
  std::string numeric_class() const override { return devices_.front()->ops().numeric_class(); }
  const kernels::Backend& host_ops() const override { return *options_.host_ops; }

  absl::StatusOr<std::unique_ptr<CollectiveGroup>> MakeCollectives(const CollectiveOptions& sizes) override {
    std::vector<const kernels::cuda::CudaQueue*> queues;
    for (const std::unique_ptr<CudaDevice>& device : devices_) queues.push_back(&device->queue());
    CudaCollectiveOptions options;
    options.sizes = sizes;
    options.kind = options_.collective;
    options.watchdog = watchdog_.get();
    const bool one_device = Sharers(options_.devices.front()) > 1;
    ASSIGN_OR_RETURN(std::unique_ptr<CudaCollectiveGroup> group, one_device
                                                                     ? MakeLocalCollectives(queues, options)
                                                                     : MakeNcclCollectives(queues, options));
    for (const std::unique_ptr<CudaDevice>& device : devices_) device->AllowCapture(group->capturable());
    return group;
  }

 private:
  uint32_t Sharers(int ordinal) const {
    return static_cast<uint32_t>(std::count(options_.devices.begin(), options_.devices.end(), ordinal));
  }

  absl::Status CheckAlike() const {
    for (const std::unique_ptr<CudaDevice>& device : devices_) {
      const kernels::cuda::DeviceTraits& traits = device->queue().traits();
      const kernels::cuda::DeviceTraits& first = devices_.front()->queue().traits();
      if (traits.capability != first.capability) {
        return absl::InvalidArgumentError(absl::StrCat("CUDA devices ", first.device, " and ", traits.device,
                                                       " have compute capabilities sm_", first.capability,
                                                       " and sm_", traits.capability,
                                                       "; the shards of one worker must have the same"));
      }
    }
    const uint32_t sharers = Sharers(options_.devices.front());
    if (sharers != 1 && sharers != options_.devices.size()) return Uneven();
    for (int ordinal : options_.devices) {
      if (Sharers(ordinal) != sharers) return Uneven();
    }
    return absl::OkStatus();
  }

  absl::Status Uneven() const {
    return absl::InvalidArgumentError(absl::StrCat("CUDA devices ", absl::StrJoin(options_.devices, ", "),
                                                   ": give each shard its own, or all the same"));
  }

  const CudaDevicesOptions options_;
  std::unique_ptr<CudaWatchdog> watchdog_;  // outlives the rest
  std::vector<std::unique_ptr<CudaDevice>> devices_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceGroup>> MakeCudaDevices(const CudaDevicesOptions& options) {
  MILLRACE_CHECK(options.host_ops != nullptr);
  if (options.devices.empty()) return absl::InvalidArgumentError("no CUDA devices were named");
  auto group = std::make_unique<CudaDeviceGroup>(options);
  RETURN_IF_ERROR(group->Open());
  return group;
}

}  // namespace millrace
