// The stand-in for the CUDA runtime: CUDA Runtime API, "API synchronization behavior", "Stream Management";
// CUDA C++ Programming Guide, "CUDA Graphs".
#include "cuda_on_cpu/runtime.h"

#include <cuda_runtime.h>

#include <future>
#include <numeric>
#include <thread>
#include <vector>

#include "cuda_on_cpu/kernel.h"
#include "gtest/gtest.h"
#include "stream_work.h"

namespace cuda_on_cpu {
namespace {

// The stand-in is to find what is wrong with the memory, before a sanitizer does.
__attribute__((no_sanitize("undefined"))) __global__ void AddOne(int* values, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) values[i] += 1;
}

// Device memory and a stream of the current device; whatever a test made must be gone at its end.
class RuntimeTest : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    SetMachine(Machine());
    ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&device_), kBytes), cudaSuccess);
    ASSERT_EQ(cudaMemset(device_, 0, kBytes), cudaSuccess);
    ASSERT_EQ(cudaHostAlloc(reinterpret_cast<void**>(&pinned_), kBytes, cudaHostAllocDefault), cudaSuccess);
  }
  void TearDown() override {
    Release();
    ReleaseHangs();
    SetMachine(Machine());
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    EXPECT_EQ(cudaFree(device_), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(pinned_), cudaSuccess);
    const Census census = TakeCensus();
    EXPECT_EQ(census.streams + census.events + census.graphs, 0);
    EXPECT_EQ(census.device_allocations + census.host_allocations, 0);
    (void)cudaGetLastError();
  }

  // The stream does nothing until Release.
  void Hold(cudaStream_t stream) {
    ASSERT_EQ(EnqueueWork(stream, [future = gate_.get_future().share()] { future.wait(); }), cudaSuccess);
    held_ = true;
  }
  void Release() {
    if (held_) gate_.set_value();
    held_ = false;
  }
  cudaError_t Start(cudaStream_t stream) {
    return Launch(AddOne, {dim3(2), dim3(32), 0, stream}, device_, kCount);
  }
  std::vector<int> Values() {
    std::vector<int> values(kCount);
    EXPECT_EQ(cudaMemcpy(values.data(), device_, kBytes, cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

  static constexpr int kCount = 64;
  static constexpr size_t kBytes = kCount * sizeof(int);
  cudaStream_t stream_ = nullptr;
  int* device_ = nullptr;
  int* pinned_ = nullptr;
  std::promise<void> gate_;
  bool held_ = false;
};

TEST_F(RuntimeTest, StreamsWorkInOrderWhileTheHostGoesOn) {
  Hold(stream_);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(Start(stream_), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned_, device_, kBytes, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(device_, 0xff, kBytes, stream_), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(Values(), std::vector<int>(kCount, 0));
  Release();
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaSuccess);
  EXPECT_EQ(std::vector<int>(pinned_, pinned_ + kCount), std::vector<int>(kCount, 3));
  EXPECT_EQ(Values(), std::vector<int>(kCount, -1));
}

TEST_F(RuntimeTest, CopiesReadPinnedMemoryLateAndPageableMemoryAtOnce) {
  std::vector<int> pageable(kCount, 1);
  std::fill_n(pinned_, kCount, 1);
  int* other = nullptr;
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&other), kBytes), cudaSuccess);
  Hold(stream_);
  ASSERT_EQ(cudaMemcpyAsync(device_, pageable.data(), kBytes, cudaMemcpyHostToDevice, stream_), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(other, pinned_, kBytes, cudaMemcpyDefault, stream_), cudaSuccess);
  pageable.assign(kCount, 2);
  std::fill_n(pinned_, kCount, 2);
  Release();
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(Values(), std::vector<int>(kCount, 1));
  ASSERT_EQ(cudaMemcpy(device_, other, kBytes, cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(Values(), std::vector<int>(kCount, 2));
  // To pageable memory a copy is done when the call returns.
  ASSERT_EQ(Start(stream_), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pageable.data(), device_, kBytes, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  EXPECT_EQ(pageable, std::vector<int>(kCount, 3));
  EXPECT_EQ(cudaFree(other), cudaSuccess);
}

TEST_F(RuntimeTest, CopiesOfRows) {
  std::iota(pinned_, pinned_ + kCount, 0);
  ASSERT_EQ(cudaMemcpy2DAsync(device_, 16, pinned_ + 1, 32, 8, 3, cudaMemcpyHostToDevice, stream_),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  std::vector<int> expected(kCount);
  for (int row = 0; row < 3; ++row) {
    for (int i = 0; i < 2; ++i) expected[4 * row + i] = 8 * row + 1 + i;
  }
  EXPECT_EQ(Values(), expected);
  EXPECT_EQ(cudaMemcpy2DAsync(device_, 7, pinned_, 32, 8, 3, cudaMemcpyHostToDevice, stream_),
            cudaErrorInvalidPitchValue);
}

TEST_F(RuntimeTest, CopiesThatAreNotWhatTheirKindSays) {
  std::vector<int> host(kCount);
  EXPECT_EQ(cudaMemcpy(host.data(), device_, kBytes, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(device_, host.data(), kBytes, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(device_, pinned_, kBytes, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(device_, device_, kBytes, cudaMemcpyHostToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host.data(), device_ + 1, kBytes, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(pinned_ + 1, device_, kBytes, cudaMemcpyDefault, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host.data(), 0, kBytes), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(device_, 0, kBytes + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(device_ + 64), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(pinned_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(device_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(RuntimeTest, EventsOrderStreams) {
  cudaStream_t second = nullptr;
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  // One that was never recorded holds nobody up.
  ASSERT_EQ(cudaStreamWaitEvent(second, event, 0), cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  Hold(stream_);
  ASSERT_EQ(Start(stream_), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(second, event, 0), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned_, device_, kBytes, cudaMemcpyDeviceToHost, second), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamQuery(second), cudaErrorNotReady);
  Release();
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_EQ(std::vector<int>(pinned_, pinned_ + kCount), std::vector<int>(kCount, 1));
  float milliseconds = 0;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, event, event), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(second), cudaSuccess);
}

TEST_F(RuntimeTest, GraphsDoWhatWasCapturedEachTimeTheyAreLaunched) {
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(Start(stream_), cudaSuccess);
  ASSERT_EQ(Start(stream_), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned_, device_, kBytes, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(Values(), std::vector<int>(kCount, 0));
  for (int launch = 1; launch <= 2; ++launch) {
    ASSERT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(std::vector<int>(pinned_, pinned_ + kCount), std::vector<int>(kCount, 2 * launch));
  }
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST_F(RuntimeTest, WhatSpoilsACapture) {
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  std::vector<int> pageable(kCount);
  void* memory = nullptr;
  const std::vector<std::function<cudaError_t()>> calls = {
      [&] { return cudaMalloc(&memory, 1); },
      [&] { return cudaHostAlloc(&memory, 1, 0); },
      [&] { return cudaFree(device_); },
      [&] { return cudaMemcpy(pageable.data(), device_, kBytes, cudaMemcpyDeviceToHost); },
      [&] { return cudaMemcpyAsync(pageable.data(), device_, kBytes, cudaMemcpyDeviceToHost, stream_); },
      [&] { return cudaMemset(device_, 0, kBytes); },
      [&] { return cudaStreamSynchronize(stream_); },
      [&] { return cudaStreamQuery(stream_); },
      [&] { return cudaDeviceSynchronize(); },
      [&] { return cudaStreamWaitEvent(stream_, event, 0); }};
  for (size_t i = 0; i < calls.size(); ++i) {
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    EXPECT_EQ(calls[i](),
              i + 1 == calls.size() ? cudaErrorStreamCaptureIsolation : cudaErrorStreamCaptureUnsupported)
        << i;
    EXPECT_EQ(Start(stream_), cudaErrorStreamCaptureInvalidated) << i;
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated) << i;
    EXPECT_EQ(graph, nullptr);
  }
  // Another thread's calls do not.
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  cudaGraph_t graph = nullptr;
  std::thread([&] {
    EXPECT_EQ(cudaMalloc(&memory, 1), cudaSuccess);
    EXPECT_EQ(cudaFree(memory), cudaSuccess);
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureWrongThread);
  }).join();
  EXPECT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST_F(RuntimeTest, StreamsJoinACaptureThroughEvents) {
  cudaStream_t second = nullptr;
  cudaEvent_t fork = nullptr, join = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), cudaSuccess);
  for (const bool joined : {true, false}) {
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(fork, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(second, fork, 0), cudaSuccess);
    ASSERT_EQ(Start(second), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(join, second), cudaSuccess);
    if (joined) {
      ASSERT_EQ(cudaStreamWaitEvent(stream_, join, 0), cudaSuccess);
    }
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    if (!joined) continue;
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(Values(), std::vector<int>(kCount, 1));
    EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
  EXPECT_EQ(cudaEventDestroy(fork), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(join), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(second), cudaSuccess);
}

TEST_F(RuntimeTest, LaunchesOnTheWrongStream) {
  EXPECT_EQ(Start(nullptr), cudaErrorInvalidResourceHandle);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(Start(stream_), cudaErrorInvalidResourceHandle);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(8), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaSetDevice(-1), cudaErrorInvalidDevice);
}

TEST_F(RuntimeTest, MemoryRunsOut) {
  Machine machine;
  machine.memory_bytes = 1 << 20;
  SetMachine(machine);
  size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(total, size_t{1} << 20);
  EXPECT_EQ(free, total - kBytes);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, free + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&memory, ~size_t{0}), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&memory, free), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, total - kBytes);
}

TEST_F(RuntimeTest, FreshMemoryHoldsNothingUseful) {
  unsigned char* memory = nullptr;
  constexpr size_t kLarge = 3 << 20;
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&memory), kLarge), cudaSuccess);
  std::vector<unsigned char> bytes(kLarge);
  ASSERT_EQ(cudaMemcpy(bytes.data(), memory, kLarge, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(bytes, std::vector<unsigned char>(kLarge, 0xff));
  ASSERT_EQ(cudaMemset(memory + 1, 0, kLarge - 2), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(bytes.data(), memory, kLarge, cudaMemcpyDeviceToHost), cudaSuccess);
  std::vector<unsigned char> expected(kLarge, 0);
  expected.front() = expected.back() = 0xff;
  EXPECT_EQ(bytes, expected);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

TEST_F(RuntimeTest, MachinesThatDoNotServe) {
  int count = -1, version = -1;
  Machine machine;
  machine.driver_version = 12080;
  SetMachine(machine);
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaDriverGetVersion(&version), cudaSuccess);
  EXPECT_EQ(version, 12080);
  machine = Machine();
  machine.devices = 0;
  SetMachine(machine);
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  machine.devices = 2;
  machine.profile = "sm_75";
  SetMachine(machine);
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 2);
  cudaDeviceProp properties;
  ASSERT_EQ(cudaGetDeviceProperties(&properties, 1), cudaSuccess);
  EXPECT_EQ(properties.major * 10 + properties.minor, 75);
  EXPECT_EQ(cudaGetDeviceProperties(&properties, 2), cudaErrorInvalidDevice);
}

TEST_F(RuntimeTest, FaultsStrikeWhenAsked) {
  FailCall("cudaMalloc", 2, cudaErrorMemoryAllocation);
  FailCall("cudaLaunchKernel", 1, cudaErrorInvalidValue);
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, 1), cudaSuccess);
  ASSERT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory, 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(Start(stream_), cudaErrorInvalidValue);
  EXPECT_EQ(Start(stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  FailKernel("AddOne", 2, cudaErrorIllegalAddress);
  EXPECT_EQ(Start(stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(Values(), std::vector<int>(kCount, 2));
  EXPECT_EQ(Start(stream_), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaMalloc(&memory, 1), cudaErrorIllegalAddress);
  EXPECT_EQ(Start(stream_), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(0), cudaErrorIllegalAddress);
}

TEST_F(RuntimeTest, AHungKernelHoldsItsStreamOnly) {
  HangKernel("AddOne", 1);
  ASSERT_EQ(Start(stream_), cudaSuccess);
  ASSERT_EQ(Start(stream_), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  EXPECT_EQ(Values(), std::vector<int>(kCount, 0));
  ReleaseHangs();
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(Values(), std::vector<int>(kCount, 2));
}

using RuntimeDeathTest = RuntimeTest;

TEST_F(RuntimeDeathTest, MemoryThatIsNotReached) {
  if (DeviceMemoryIsProtected()) {
    EXPECT_DEATH(*static_cast<volatile int*>(device_) = 1, "the host touched memory of a device");
    EXPECT_DEATH((void)*static_cast<volatile int*>(device_), "the host touched memory of a device");
  }
  const auto run = [&](int* values, int count) {
    (void)Launch(AddOne, {dim3(1), dim3(1024), 0, stream_}, values, count);
    (void)cudaStreamSynchronize(stream_);
  };
  EXPECT_DEATH(run(device_, 1024), "outside of an allocation, beside it: kernel .*AddOne");
  EXPECT_DEATH(
      {
        int* freed = nullptr;
        (void)cudaMalloc(reinterpret_cast<void**>(&freed), 64);
        (void)cudaFree(freed);
        run(freed, 1);
      },
      "memory that has been freed: kernel .*AddOne");
  EXPECT_DEATH(run(nullptr, 1), "no memory: kernel .*AddOne");
}

}  // namespace
}  // namespace cuda_on_cpu
