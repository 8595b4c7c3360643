// What a worker computes its stage with: made for each assignment, as the coordinator chooses the types and
// knows who else is on the machine.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/numeric_choice.h"
#include "kernels/backend.h"
#include "millrace/v1/cluster.pb.h"
#include "worker/device/cuda_library.h"
#include "worker/device/device.h"

namespace millrace {

// What the worker's user said.
struct StageBackendOptions {
  std::string isa = "auto";
  int64_t threads = 0;  // of each shard; 0: as many as the worker's share of the cores allows
  bool pin_threads = false;
  int64_t shards = 1;                  // tensor-parallel
  std::string backend = "auto";        // or "cpu", "cuda"
  std::vector<int64_t> cuda_devices;   // one for each shard; empty: by local_rank
  int64_t local_rank = 0;              // number of this worker among those of its machine
  std::string collective = "ordered";  // or "allreduce"
  absl::Duration watchdog = absl::Seconds(30);
  // Not null: shards are CUDA devices. ChooseBackend's answer.
  std::shared_ptr<const CudaLibrary> cuda;
};

// The CUDA devices of the shards: those of the user, or by DevicesOfWorker.
std::vector<int> CudaDevicesOf(const StageBackendOptions& options);

// What the coordinator said.
struct StageBackendChoice {
  NumericChoice numeric;
  // This worker is number `sharer` of `sharers` that may use the same cores.
  uint32_t sharer = 0;
  uint32_t sharers = 1;

  bool operator==(const StageBackendChoice& other) const {
    return numeric == other.numeric && sharer == other.sharer && sharers == other.sharers;
  }
};

// INVALID_ARGUMENT: types that this version does not know, a share of the cores that cannot be. `From` is
// v1::Measure or v1::Assign.
template <class From>
absl::StatusOr<StageBackendChoice> ToBackendChoice(const From& from);

// Part `index` of `count` of the cores, in order: as many as the others' up to one, and at least one, which
// several have where there are fewer cores than parts. REQUIRES: index < count, cores is not empty.
absl::Span<const int> PartOfCores(absl::Span<const int> cores, size_t index, size_t count);

// One CPU backend for each shard. `cores` are those this process may use; the threads of a shard get their
// part of the worker's part of them, and are confined to it only with pin_threads. Errors as
// kernels::MakeCpuBackend.
absl::StatusOr<std::vector<std::unique_ptr<kernels::Backend>>> MakeStageBackends(
    const StageBackendOptions& options, const StageBackendChoice& choice, absl::Span<const int> cores);

// What the worker's shards run on. FAILED_PRECONDITION: an activation or KV type that these do not have.
// Errors of MakeStageBackends or CudaLibrary::Open.
absl::StatusOr<std::unique_ptr<DeviceGroup>> MakeStageDevices(const StageBackendOptions& options,
                                                              const StageBackendChoice& choice,
                                                              absl::Span<const int> cores);

}  // namespace millrace
