// What the tests of CUDA kernels share: devices of each kind, guarded device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_queue.h"

namespace millrace::kernels::cuda {

// Compute capability 8.0, 8.6 and 9.0: 163, 99 and 227 KB of shared memory a block (CUDA C++ Programming
// Guide, "Technical Specifications per Compute Capability").
const std::vector<DeviceTraits>& TraitsOfAllKinds();

// A stream and what runs on it, of device 0 taken for one of `traits`.
class TestDevice {
 public:
  explicit TestDevice(const DeviceTraits& traits = TraitsOfAllKinds().back());
  ~TestDevice();
  TestDevice(const TestDevice&) = delete;
  TestDevice& operator=(const TestDevice&) = delete;

  cudaStream_t stream() const { return stream_; }
  const CudaQueue& queue() const { return *queue_; }
  // Has a queue of its own on the same stream: look at its status too.
  std::unique_ptr<CudaBackend> MakeBackend() const { return MakeCudaBackend(stream_, queue_->traits()); }
  // Waits for what is on the stream; fails the test at any error so far.
  void Wait() const;

 private:
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<CudaQueue> queue_;
};

// `bytes` bytes of device memory between guards, 256-byte aligned, all 0xff at first (float NaN).
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes);
  ~DeviceBytes();
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  uint8_t* data() const { return memory_ + kGuardBytes; }
  size_t size() const { return size_; }
  // Of all bytes. Wait for the stream before.
  void Upload(const void* from);
  void Download(void* to) const;
  // Whether the guards are as they were.
  bool Intact() const;

 private:
  static constexpr size_t kGuardBytes = 256;
  size_t size_;
  uint8_t* memory_ = nullptr;
};

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : bytes_(count * sizeof(T)) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { Set(values); }

  T* data() const { return reinterpret_cast<T*>(bytes_.data()); }
  size_t size() const { return bytes_.size() / sizeof(T); }
  void Set(const std::vector<T>& values) {
    ASSERT_EQ(values.size(), size());
    bytes_.Upload(values.data());
  }
  std::vector<T> values() const {
    std::vector<T> values(size());
    bytes_.Download(values.data());
    return values;
  }
  bool Intact() const { return bytes_.Intact(); }

 private:
  DeviceBytes bytes_;
};

}  // namespace millrace::kernels::cuda
