#include "tests/kernels/cuda/cuda_testing.h"

#include <algorithm>

namespace millrace::kernels::cuda {
namespace {

constexpr uint8_t kGuard = 0xa5;

}  // namespace

const std::vector<DeviceTraits>& TraitsOfAllKinds() {
  static const std::vector<DeviceTraits> traits = {
      {0, 80, 163 * 1024, 108}, {0, 86, 99 * 1024, 84}, {0, 90, 227 * 1024, 132}};
  return traits;
}

TestDevice::TestDevice(const DeviceTraits& traits) {
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  queue_ = std::make_unique<CudaQueue>(stream_, traits);
}

TestDevice::~TestDevice() {
  Wait();
  EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
}

void TestDevice::Wait() const {
  const cudaError_t error = cudaStreamSynchronize(stream_);
  EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
  EXPECT_TRUE(queue_->status().ok()) << queue_->status();
}

DeviceBytes::DeviceBytes(size_t bytes) : size_(bytes) {
  const size_t all = bytes + 2 * kGuardBytes;
  EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&memory_), all), cudaSuccess);
  EXPECT_EQ(cudaMemset(memory_, kGuard, all), cudaSuccess);
  EXPECT_EQ(cudaMemset(data(), 0xff, bytes), cudaSuccess);
}

DeviceBytes::~DeviceBytes() {
  EXPECT_EQ(cudaFree(memory_), cudaSuccess);
}

void DeviceBytes::Upload(const void* from) {
  EXPECT_EQ(cudaMemcpy(data(), from, size_, cudaMemcpyHostToDevice), cudaSuccess);
}

void DeviceBytes::Download(void* to) const {
  EXPECT_EQ(cudaMemcpy(to, data(), size_, cudaMemcpyDeviceToHost), cudaSuccess);
}

bool DeviceBytes::Intact() const {
  for (const uint8_t* guard : {memory_, data() + size_}) {
    std::vector<uint8_t> bytes(kGuardBytes);
    if (cudaMemcpy(bytes.data(), guard, kGuardBytes, cudaMemcpyDeviceToHost) != cudaSuccess) return false;
    if (std::ranges::any_of(bytes, [](uint8_t byte) { return byte != kGuard; })) return false;
  }
  return true;
}

}  // namespace millrace::kernels::cuda
