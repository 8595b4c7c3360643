// What tests control of the stand-in for the CUDA runtime (its functions are declared by CUDA's own headers).
//
// Each stream is a thread that does its work in order, at a pace drawn from the seed; host threads reach
// device memory only through copies: touching it ends the process with a report, where the processor has
// memory protection keys. Fresh memory and freed memory hold no usable data; each allocation ends at memory
// that is not mapped.
//
// Not shown: time, occupancy, the hardware's own races and its weak memory order; kernels that reach host
// memory that is not pinned, which devices cannot; overruns of less than 256 bytes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

namespace cuda_on_cpu {

// What cudaGetDeviceCount and the like find.
struct Machine {
  int devices = 8;
  std::string profile = "sm_90";       // sm_75, sm_80, sm_86, sm_90, sm_100
  uint64_t memory_bytes = 8ull << 30;  // of each device; pages are taken as they are touched
  uint64_t seed = 1;                   // paces of streams, orders within kernels
  int driver_version = 13000;          // as cudaDriverGetVersion says; 0: no driver
};

// Forgets faults and sticky errors too. Thread: any, while there are no streams and no allocations. The first
// machine is Machine() with what the environment's MILLRACE_CUDA_ON_CPU says:
//   devices=2,profile=sm_90,memory=2G,seed=7,driver=12080,fail=cudaMalloc:3:2,failkernel=Attention:1:700,
//   hangkernel=Attention:5
// (fail: function, which of its calls, error number; failkernel and hangkernel: part of the kernel's name,
// which of its launches). What cannot be read ends the process.
void SetMachine(const Machine& machine);

// The `nth` (from 1) call from now of `function`, such as "cudaMalloc", returns `error` and does nothing.
// Launches of kernels are calls of "cudaLaunchKernel".
void FailCall(const std::string& function, int nth, cudaError_t error);
// The `nth` run from now of a kernel whose name contains `part` does nothing; its device is lost: every later
// call on it returns `error`.
void FailKernel(const std::string& part, int nth, cudaError_t error);
// That run waits for ReleaseHangs, which also drops the faults that were not met.
void HangKernel(const std::string& part, int nth);
void ReleaseHangs();

// What has been made and not destroyed.
struct Census {
  int streams = 0;
  int events = 0;
  int graphs = 0;  // and their executable forms
  int device_allocations = 0;
  int host_allocations = 0;
};
Census TakeCensus();

// Whether host threads that touch device memory are caught.
bool DeviceMemoryIsProtected();

}  // namespace cuda_on_cpu
