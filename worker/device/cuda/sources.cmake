# Sources of the shards on CUDA devices; compiled like those of kernels/cuda. Paths from this folder.
set(MILLRACE_CUDA_DEVICE_SOURCES
  local_collective.cc
  nccl_collective.cc
  nccl_communicators.cc
  partial_sums.cc
  watchdog.cc
  watchdog_logic.cc)
