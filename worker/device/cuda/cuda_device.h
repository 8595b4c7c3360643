// One CUDA device as a shard has it: a stream, memory, pinned staging, graphs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/cuda/cuda_backend.h"
#include "worker/device/cuda/watchdog.h"
#include "worker/device/device.h"

namespace millrace {

struct CudaDeviceOptions {
  int ordinal = 0;  // as the runtime counts visible devices
  uint32_t shard = 0;
  uint32_t sharers = 1;              // shards that have this device
  CudaWatchdog* watchdog = nullptr;  // told of work and errors if not null; outlives the device
  absl::Duration work_limit;         // of each piece of work, for the watchdog
};

// Copies and ops go to one stream, which does not wait for the legacy one. Errors name the device and what
// was asked of it; those of the stream are INTERNAL and stay. Staging is pinned memory that every device can
// copy from and to.
class CudaDevice final : public Device {
 public:
  // Errors of kernels::cuda::ReadTraits; INTERNAL: the runtime refuses a stream.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(const CudaDeviceOptions& options);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  std::string name() const override;
  const kernels::Backend& ops() const override { return *backend_; }
  bool on_host() const override { return false; }
  void Enter() override;
  absl::StatusOr<DeviceMemory> Allocate(absl::string_view what, uint64_t bytes) override;
  absl::StatusOr<DeviceMemory> AllocateStaging(absl::string_view what, uint64_t bytes) override;
  uint64_t FreeBytes() const override;
  void Begin(const WorkName& work) override;
  void CopyIn(void* to, const void* from_staging, uint64_t bytes) override;
  void CopyOut(void* to_staging, const void* from, uint64_t bytes) override;
  void CopyRows(const Rows& rows) override;
  absl::Status Finish() override;
  // By a graph, in thread-local capture mode. Null where AllowCapture said so.
  absl::StatusOr<std::unique_ptr<CapturedWork>> Capture(absl::FunctionRef<absl::Status()> enqueue) override;
  void Replay(const CapturedWork& work) override;

  // The stream and the traits, for what else is enqueued there.
  const kernels::cuda::CudaQueue& queue() const { return backend_->queue(); }
  // False: what is enqueued cannot be captured, as collectives meet other threads.
  void AllowCapture(bool allowed) { can_capture_ = allowed; }

 private:
  class Graph;
  explicit CudaDevice(const CudaDeviceOptions& options) : options_(options) {}
  absl::Status Open();
  absl::Status Error(cudaError_t error, absl::string_view what) const;
  absl::Status NoMemory(cudaError_t error, absl::string_view what, uint64_t bytes) const;

  const CudaDeviceOptions options_;
  std::string model_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t done_ = nullptr;
  std::unique_ptr<kernels::cuda::CudaBackend> backend_;
  bool can_capture_ = true;
  size_t reported_ = 0;  // lines of the backend's report
};

}  // namespace millrace
