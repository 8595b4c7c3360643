# Sources of the CUDA backend, which nvcc builds for devices and the C++ compiler for running on a CPU. Paths from
# this folder.
set(MILLRACE_CUDA_KERNEL_SOURCES
  batch_tables.cc
  compare_rows.cu
  cublas_lt.cc
  cuda_backend.cc
  cuda_queue.cc
  elementwise.cu
  matmul.cc
  matmul_float.cu
  matmul_int8.cu
  pack.cc
  paged_attention.cu
  prepare_input.cu
  sample.cu
  store_kv.cu)

# What calls cuBLASLt's functions in the library, which is loaded when it is first needed.
set(MILLRACE_CUDA_KERNEL_FORWARDING_SOURCES
  cublas_functions.cc)
