# Sources of the shards on CUDA devices; compiled like those of kernels/cuda. Paths from this folder.
set(MILLRACE_CUDA_DEVICE_SOURCES)
