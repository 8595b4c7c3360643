// CPU backends as devices: shards that work in ordinary host memory and meet there.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/device/device.h"

namespace millrace {

// Captures nothing: a CPU gains nothing by it. Enter confines the thread to its core (Backend::PinCaller).
class HostDevices final : public DeviceGroup {
 public:
  // One shard for each backend; at least 1.
  explicit HostDevices(std::vector<std::unique_ptr<kernels::Backend>> backends);
  // Of backends that outlive this.
  explicit HostDevices(absl::Span<const kernels::Backend* const> backends);
  ~HostDevices() override;

  uint32_t size() const override;
  Device& device(uint32_t shard) override;
  std::string numeric_class() const override;
  const kernels::Backend& host_ops() const override;
  absl::StatusOr<std::unique_ptr<CollectiveGroup>> MakeCollectives(const CollectiveOptions& options) override;

 private:
  class HostDevice;
  void MakeDevices();

  const std::vector<std::unique_ptr<kernels::Backend>> owned_;
  std::vector<const kernels::Backend*> backends_;
  std::vector<std::unique_ptr<HostDevice>> devices_;
};

}  // namespace millrace
