# The CUDA toolkit, and how device code is compiled. Sets MILLRACE_CUDA_BUILDS: libmillrace_cuda.so is built; and
# MILLRACE_CUDA_INCLUDE, where there are CUDA's headers, which the tests that run device code on the CPU need as well.
#
# Toolkits are looked for in CUDA_HOME, CUDA_PATH, /usr/local/cuda and where deploy/get_cuda.sh puts one.

set(MILLRACE_CUDA_LEAST_NVCC 13.0)
# One native code for each generation that has its own, and PTX for those to come.
set(MILLRACE_CUDA_ARCHITECTURES
  -gencode=arch=compute_80,code=sm_80
  -gencode=arch=compute_90,code=sm_90
  -gencode=arch=compute_100,code=[sm_100,compute_100])

set(millrace_cache $ENV{MILLRACE_CACHE})
if(NOT millrace_cache AND DEFINED ENV{XDG_CACHE_HOME})
  set(millrace_cache $ENV{XDG_CACHE_HOME}/millrace)
elseif(NOT millrace_cache)
  set(millrace_cache $ENV{HOME}/.cache/millrace)
endif()
set(millrace_cuda_roots $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda ${millrace_cache}/cuda)

find_path(MILLRACE_CUDA_INCLUDE cuda_runtime.h PATHS ${millrace_cuda_roots} PATH_SUFFIXES include NO_DEFAULT_PATH
  DOC "Folder of cuda_runtime.h, cublasLt.h and nccl.h")
find_program(MILLRACE_NVCC nvcc PATHS ${millrace_cuda_roots} PATH_SUFFIXES bin NO_DEFAULT_PATH)
find_program(MILLRACE_NVCC nvcc)
find_library(MILLRACE_CUDART_STATIC libcudart_static.a PATHS ${millrace_cuda_roots} PATH_SUFFIXES lib lib64
  NO_DEFAULT_PATH)
find_program(MILLRACE_NVCC_HOST NAMES g++-12 g++ DOC "The C++ compiler behind nvcc")

# Sets `result` to what keeps libmillrace_cuda.so from being built; empty if nothing does.
function(millrace_cuda_obstacle result)
  set(${result} "" PARENT_SCOPE)
  if(MILLRACE_SANITIZE)
    set(${result} "sanitizers are on" PARENT_SCOPE)
    return()
  endif()
  if(NOT MILLRACE_NVCC)
    set(${result} "there is no nvcc" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${MILLRACE_NVCC} --version OUTPUT_VARIABLE text ERROR_QUIET)
  if(NOT text MATCHES "release ([0-9.]+)" OR CMAKE_MATCH_1 VERSION_LESS MILLRACE_CUDA_LEAST_NVCC)
    set(${result} "${MILLRACE_NVCC} is older than ${MILLRACE_CUDA_LEAST_NVCC}, or does not run" PARENT_SCOPE)
    return()
  endif()
  foreach(header cuda_runtime.h cublasLt.h nccl.h)
    if(NOT MILLRACE_CUDA_INCLUDE OR NOT EXISTS ${MILLRACE_CUDA_INCLUDE}/${header})
      set(${result} "there is no ${header}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  if(NOT MILLRACE_CUDART_STATIC)
    set(${result} "there is no libcudart_static.a" PARENT_SCOPE)
  elseif(NOT MILLRACE_NVCC_HOST)
    set(${result} "there is no g++ for nvcc" PARENT_SCOPE)
  endif()
endfunction()

set(MILLRACE_CUDA_BUILDS OFF)
if(NOT MILLRACE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "MILLRACE_CUDA is ON, OFF or AUTO, not ${MILLRACE_CUDA}")
elseif(NOT MILLRACE_CUDA STREQUAL OFF)
  millrace_cuda_obstacle(obstacle)
  if(NOT obstacle)
    set(MILLRACE_CUDA_BUILDS ON)
    message(STATUS "CUDA: libmillrace_cuda.so is built with ${MILLRACE_NVCC}")
  elseif(MILLRACE_CUDA STREQUAL ON)
    message(FATAL_ERROR "MILLRACE_CUDA is ON, but ${obstacle}; deploy/get_cuda.sh gets a toolkit")
  else()
    message(STATUS "CUDA: libmillrace_cuda.so is not built: ${obstacle}")
  endif()
endif()

# millrace_device_objects(RESULT SOURCES...): compiles .cu files; sets RESULT to the object files. Beside each object
# lies <object>.ptxas, what ptxas says of its kernels.
function(millrace_device_objects result)
  set(objects)
  foreach(source ${ARGN})
    get_filename_component(source ${source} ABSOLUTE)
    file(RELATIVE_PATH name ${PROJECT_SOURCE_DIR} ${source})
    string(REPLACE "/" "." name ${name})
    set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
    add_custom_command(OUTPUT ${object} BYPRODUCTS ${object}.ptxas
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/cuda
      COMMAND ${PROJECT_SOURCE_DIR}/cmake/nvcc.sh ${object}.ptxas ${CMAKE_CXX_COMPILER_LAUNCHER} ${MILLRACE_NVCC}
        -ccbin ${MILLRACE_NVCC_HOST} -std=c++20 -O3 -fmad=false ${MILLRACE_CUDA_ARCHITECTURES}
        -Werror all-warnings -Xcompiler=-Wall,-Wextra,-Werror,-fPIC,-fvisibility=hidden,-ffp-contract=off
        -Xptxas=-v -I${PROJECT_SOURCE_DIR} -isystem ${MILLRACE_CUDA_INCLUDE}
        -MD -MF ${object}.d -MT ${object} -c ${source} -o ${object}
      DEPENDS ${source} ${PROJECT_SOURCE_DIR}/cmake/nvcc.sh DEPFILE ${object}.d
      COMMENT "Compiling device code ${name}" VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  set(${result} ${objects} PARENT_SCOPE)
endfunction()
