# Sources of the shards on CUDA devices; compiled like those of kernels/cuda. Paths from this folder.
set(MILLRACE_CUDA_DEVICE_SOURCES
  cuda_device.cc
  cuda_device_group.cc
  device_list.cc
  local_collective.cc
  nccl_collective.cc
  nccl_communicators.cc
  partial_sums.cc
  watchdog.cc
  watchdog_logic.cc)

# Of libmillrace_cuda.so: its exports, and what calls libraries that it loads itself.
set(MILLRACE_CUDA_ENTRY_SOURCES
  cuda_library_main.cc)
set(MILLRACE_CUDA_FORWARDING_SOURCES
  nccl_functions.cc)
