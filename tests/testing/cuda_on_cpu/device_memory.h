// Memory of the stand-in's devices, and pinned memory of the host.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu::internal {

inline constexpr int kHost = -1;

// A null pointer where `device` (kHost: pinned memory) has no room. 256-byte aligned, all bytes 0xff (of
// large ones, only near both ends).
void* AllocateMemory(int device, size_t bytes, uint64_t device_bytes);
// False: not what AllocateMemory gave for a device (or kHost). Later accesses end the process.
bool FreeMemory(void* memory, bool of_host);

enum class Place : uint8_t { kPageable, kPinned, kDevice };
struct Located {
  Place place = Place::kPageable;
  int device = kHost;
  bool whole = true;  // the range lies in one allocation, or in none at all
};
Located Locate(const void* memory, size_t bytes);

uint64_t BytesInUse(int device);
int Allocations(bool of_host);

// Lets the calling thread reach device memory while it lives.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;

 private:
  int rights_before_ = 0;
};
bool MemoryIsProtected();

// Sets `bytes` bytes; zeros of large ranges cost no pages.
void SetMemory(void* memory, int value, size_t bytes);

}  // namespace cuda_on_cpu::internal
