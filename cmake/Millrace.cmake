# How every target of the project is declared.
if(MILLRACE_PCH)
  set(CMAKE_POSITION_INDEPENDENT_CODE ON)  # the same for all that share what is read once
endif()

add_library(millrace_build_flags INTERFACE)
target_compile_options(millrace_build_flags INTERFACE -Wall -Wextra -Werror)
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(millrace_build_flags INTERFACE -Wthread-safety)
endif()
if(MILLRACE_SANITIZE)
  target_compile_options(millrace_build_flags INTERFACE
    -fsanitize=${MILLRACE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  target_link_options(millrace_build_flags INTERFACE -fsanitize=${MILLRACE_SANITIZE})
endif()
target_include_directories(millrace_build_flags INTERFACE ${PROJECT_SOURCE_DIR})
# The same bits on every build: a * b + c is one rounding only where the source says fma.
target_compile_options(millrace_build_flags INTERFACE -ffp-contract=off)

# With MILLRACE_PCH, headers that most sources include are read once: more than half of the time of compiling a test is
# reading them. Not by default: a source that forgets an include would compile.
# millrace_precompiled(NAME SAMPLE HEADERS...): `name` reads them from where `sample`, compiled with the same flags, put them.
function(millrace_precompiled name sample)
  if(NOT MILLRACE_PCH)
    return()
  endif()
  if(NOT TARGET ${sample})
    file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/${sample}.cc CONTENT "")
    get_target_property(type ${name} TYPE)
    if(type STREQUAL EXECUTABLE)
      file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/${sample}.cc CONTENT "int main() {}\n")
      add_executable(${sample} ${CMAKE_BINARY_DIR}/generated/${sample}.cc)
    else()
      add_library(${sample} STATIC ${CMAKE_BINARY_DIR}/generated/${sample}.cc)
    endif()
    get_target_property(options ${name} COMPILE_OPTIONS)
    if(options)
      target_compile_options(${sample} PRIVATE ${options})
    endif()
    target_link_libraries(${sample} PRIVATE millrace_build_flags absl::statusor absl::strings absl::time ${ARGN})
    target_precompile_headers(${sample} PRIVATE ${MILLRACE_PCH_HEADERS})
    if(GTest::gmock IN_LIST ARGN)
      target_precompile_headers(${sample} PRIVATE <gmock/gmock.h> <gtest/gtest.h>)
    endif()
    if(MILLRACE_RPC)
      target_link_libraries(${sample} PRIVATE PkgConfig::GRPC)
      target_precompile_headers(${sample} PRIVATE <grpcpp/grpcpp.h>)
    endif()
  endif()
  target_precompile_headers(${name} REUSE_FROM ${sample})
endfunction()
set(MILLRACE_PCH_HEADERS <algorithm> <atomic> <chrono> <condition_variable> <cstdint> <deque> <functional> <map>
  <memory> <mutex> <optional> <random> <set> <string> <thread> <utility> <vector>
  <absl/status/status.h> <absl/status/statusor.h> <absl/strings/str_cat.h> <absl/time/time.h> <absl/types/span.h>)

# What fuzz targets lead into tells the fuzzer which edges it takes; everywhere else that would only cost time.
set(MILLRACE_FUZZED millrace_common millrace_model millrace_jinja millrace_frontend)

# millrace_library(NAME SOURCES ... DEPS ... [PRIVATE_DEPS ...] [OWN_FLAGS])
# OWN_FLAGS: the target or its sources get compiler flags that others do not.
function(millrace_library name)
  cmake_parse_arguments(ARG "OWN_FLAGS" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(${name} STATIC ${ARG_SOURCES})
    target_link_libraries(${name} PUBLIC ${ARG_DEPS} PRIVATE millrace_build_flags ${ARG_PRIVATE_DEPS})
    target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
    if(MILLRACE_SANITIZE)
      target_link_options(${name} PUBLIC -fsanitize=${MILLRACE_SANITIZE})
    endif()
    set(headers millrace_library_headers)
    if(MILLRACE_FUZZ AND name IN_LIST MILLRACE_FUZZED)
      target_compile_options(${name} PRIVATE -fsanitize=fuzzer-no-link)
      set(headers millrace_fuzzed_library_headers)
    endif()
    if(NOT ARG_OWN_FLAGS)
      millrace_precompiled(${name} ${headers})
    endif()
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE ${ARG_DEPS})
    target_include_directories(${name} INTERFACE ${PROJECT_SOURCE_DIR})
  endif()
endfunction()

# millrace_program(NAME OUTPUT SOURCES ... DEPS ...)
function(millrace_program name output)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE millrace_build_flags ${ARG_DEPS})
  set_target_properties(${name} PROPERTIES OUTPUT_NAME ${output})
endfunction()

# millrace_test(NAME SOURCES ... DEPS ... [LABELS ...] [SLOW FILTER] [MUCH_WORK]): a GoogleTest program, each case one
# ctest. SLOW: cases, as GoogleTest's filters name them, that get the label `slow` instead: with a sanitizer they take
# minutes and reach no code that others do not.
# MUCH_WORK: what the test itself does takes longer than compiling it.
function(millrace_test name)
  cmake_parse_arguments(ARG "MUCH_WORK" "SLOW" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE millrace_build_flags ${ARG_DEPS} GTest::gmock_main)
  set(optimisation -O1)
  if(MILLRACE_SANITIZE AND NOT ARG_MUCH_WORK)
    set(optimisation -O0)
  endif()
  # -O1 is quicker to compile, and with sanitizers, where -O1 takes twice as long to compile as -O0, so is that. GCC 12
  # raises both warnings falsely on the many optionals and variants that tests compare
  # (GCC bugs 105562, 105651); the code under test is compiled with them.
  target_compile_options(${name} PRIVATE ${optimisation}
    "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-restrict>")
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if(NOT ARG_MUCH_WORK)
    millrace_precompiled(${name} millrace_test_headers GTest::gmock)
  endif()
  set(discover DISCOVERY_TIMEOUT 60 WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} PROPERTIES TIMEOUT 300)
  if(ARG_SLOW)
    gtest_discover_tests(${name} TEST_FILTER "${ARG_SLOW}" TEST_LIST ${name}_slow ${discover} LABELS slow)
    gtest_discover_tests(${name} TEST_FILTER "-${ARG_SLOW}" ${discover} LABELS "${ARG_LABELS}")
  else()
    gtest_discover_tests(${name} ${discover} LABELS "${ARG_LABELS}")
  endif()
endfunction()
