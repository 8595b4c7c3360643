// Which backend a worker computes with: what its user asked for, and what this machine has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/kv_type.h"
#include "common/numeric_choice.h"
#include "worker/control/stage_backends.h"

namespace millrace {

// What the flags' own ranges do not say. INVALID_ARGUMENT: one line that names the flag.
absl::Status CheckBackendFlags(const StageBackendOptions& options);

// Settles options->cuda by options->backend: "cpu" leaves it empty, "cuda" needs the library and the devices
// to serve, "auto" takes them where they do. Logs one line that says what was found, and for "auto" why not.
// FAILED_PRECONDITION: "cuda" cannot be had; one line. `library_path`: as CudaLibraryPath gives it.
absl::Status ChooseBackend(const std::string& library_path, StageBackendOptions* options);

// The first part of the numeric class: "cpu", "cuda/sm_90", "cuda/sm_90/cublas-130200" where cuBLASLt can be
// loaded, or "cuda/sm_90/allreduce-2" where the sums depend on the number of shards.
std::string BackendFamily(const StageBackendOptions& options);

// For people: "avx512vnni". Errors as kernels::MakeCpuBackend.
absl::StatusOr<std::string> CpuKernelsName(const std::string& isa);

// For people: "sm_90, 2 x NVIDIA H100 80GB HBM3". REQUIRES: options.cuda is set.
std::string CudaKernelsName(const StageBackendOptions& options);

// What MakeStageDevices can be asked for.
std::vector<ActivationType> SupportedActivations(const StageBackendOptions& options);
std::vector<KvType> SupportedKvTypes(const StageBackendOptions& options);

// Memory for weights, KV cache and activations: of the CUDA devices, less a sixteenth that CUDA itself may
// take; otherwise what is free on the host.
uint64_t BackendMemoryBytes(const StageBackendOptions& options);

}  // namespace millrace
