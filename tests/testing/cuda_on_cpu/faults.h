// The machine that the runtime shows, errors that tests asked for, and the errors each thread and device had.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>

#include "cuda_on_cpu/launch.h"
#include "cuda_on_cpu/runtime.h"

namespace cuda_on_cpu::internal {

struct Profile {
  const char* name;
  int capability;
  size_t shared_bytes;  // cudaDevAttrMaxSharedMemoryPerBlockOptin
  int multiprocessors;
};

const Machine& TheMachine();
const Profile& TheProfile();

// The calling thread's.
int CurrentDevice();
void SetCurrentDevice(int device);

enum class Needs { kNothing, kDriver, kDevice };
// One call of `function`: an error that it is to return at once, or what `body` returns. The thread's last
// error follows.
cudaError_t Call(const char* function, Needs needs, const std::function<cudaError_t()>& body);
cudaError_t TakeLastError(bool keep);

// Runs the kernel, or what tests asked for in its place. Thread: a stream's.
void RunKernelOrFault(const KernelLaunch& launch, int device);
// cudaSuccess, or what its lost kernel's error was.
cudaError_t LostError(int device);
void LoseDevice(int device, cudaError_t error);
// Whether a kernel hangs now.
bool SomethingHangs();

}  // namespace cuda_on_cpu::internal
