# cuda_bench on the stand-in, once at small sizes: shows that it runs. Included where the stand-in's targets are.
set(folder ${PROJECT_SOURCE_DIR}/bench/cuda)
add_executable(cuda_bench_on_cpu ${folder}/attention_bench.cc ${folder}/bench.cc ${folder}/cuda_bench.cc
  ${folder}/matmul_bench.cc ${folder}/small_ops_bench.cc ${folder}/mma_rate.cu)
target_compile_definitions(cuda_bench_on_cpu PRIVATE MILLRACE_ON_CPU)
target_link_libraries(cuda_bench_on_cpu PRIVATE millrace_build_flags millrace_cuda_kernels_on_cpu)
set_source_files_properties(${folder}/mma_rate.cu PROPERTIES LANGUAGE CXX COMPILE_OPTIONS -Wno-unknown-pragmas)
set_target_properties(cuda_bench_on_cpu PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
add_test(NAME cuda_bench_smoke COMMAND cuda_bench_on_cpu --smoke)
set_tests_properties(cuda_bench_smoke PROPERTIES LABELS unit TIMEOUT 300)
