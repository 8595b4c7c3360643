#include "device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "common/check.h"
#include "cuda_on_cpu/place.h"
#include "kernel_launch.h"

namespace cuda_on_cpu::internal {
namespace {

constexpr size_t kAlignment = 256;

struct Allocation {
  uintptr_t data;
  size_t bytes;
  int device;
  void* region;  // guard page, pages, guard page
  size_t region_bytes;
};

struct Memory {
  std::mutex mutex;
  std::map<uintptr_t, Allocation>
      by_end;  // keyed by the end of the data, so that upper_bound finds who holds a byte
  std::map<int, uint64_t> in_use;
  std::map<int, int> count;
  std::deque<Allocation> freed;
  int key = -1;  // of protection, -1: none
};

// Never destroyed: streams' threads may outlive everything else.
Memory& TheMemory();

size_t PageBytes() {
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

size_t RoundUp(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

struct sigaction old_action;

// Says whose fault it was, then lets what was there before handle it.
void ReportFault(int signal, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  Memory& memory = TheMemory();
  const char* what = nullptr;
  if (info->si_code == SEGV_PKUERR) {
    what = "the host touched memory of a device, which only copies and kernels reach";
  } else if (memory.mutex.try_lock()) {
    for (const auto& [end, allocation] : memory.by_end) {
      const auto region = reinterpret_cast<uintptr_t>(allocation.region);
      if (address >= region && address < region + allocation.region_bytes)
        what = "outside of an allocation, beside it";
    }
    for (const Allocation& allocation : memory.freed) {
      const auto region = reinterpret_cast<uintptr_t>(allocation.region);
      if (address >= region && address < region + allocation.region_bytes)
        what = "memory that has been freed";
    }
    memory.mutex.unlock();
  }
  if (what != nullptr || current_thread != nullptr) {
    std::fprintf(stderr, "cuda_on_cpu: access to %p: %s%s%s\n", info->si_addr,
                 what == nullptr ? "no memory" : what, current_thread == nullptr ? "" : ": ",
                 DescribePlace().c_str());
  }
  sigaction(signal, &old_action, nullptr);
}

Memory& TheMemory() {
  static Memory* const memory = [] {
    auto* const made = new Memory;
    made->key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    struct sigaction action = {};
    action.sa_sigaction = ReportFault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_action);
    return made;
  }();
  return *memory;
}

void Poison(void* data, size_t bytes) {
  constexpr size_t kWhole = 64 << 20, kEnd = 4 << 20;
  if (bytes <= kWhole) {
    std::memset(data, 0xff, bytes);
  } else {
    std::memset(data, 0xff, kEnd);
    std::memset(static_cast<char*>(data) + bytes - kEnd, 0xff, kEnd);
  }
}

}  // namespace

void* AllocateMemory(int device, size_t bytes, uint64_t device_bytes) {
  Memory& memory = TheMemory();
  const size_t page = PageBytes();
  const size_t rounded = RoundUp(bytes, kAlignment);
  if (bytes > rounded || rounded > device_bytes) return nullptr;
  const std::lock_guard lock(memory.mutex);
  if (device != kHost && memory.in_use[device] + rounded > device_bytes) return nullptr;
  const size_t inner = RoundUp(rounded, page);
  void* const region =
      mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) return nullptr;
  char* const start = static_cast<char*>(region) + page;
  MILLRACE_CHECK(mprotect(start, inner, PROT_READ | PROT_WRITE) == 0);
  char* const data = start + inner - rounded;
  Poison(data, rounded);
  if (device != kHost && memory.key >= 0) {
    MILLRACE_CHECK(pkey_mprotect(start, inner, PROT_READ | PROT_WRITE, memory.key) == 0);
  }
  const auto address = reinterpret_cast<uintptr_t>(data);
  memory.by_end[address + rounded] = {address, bytes, device, region, inner + 2 * page};
  memory.in_use[device] += rounded;
  ++memory.count[device];
  return data;
}

bool FreeMemory(void* data, bool of_host) {
  constexpr size_t kKeptFreed = 256;
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  const auto found = memory.by_end.upper_bound(reinterpret_cast<uintptr_t>(data));
  if (found == memory.by_end.end()) return false;
  const Allocation allocation = found->second;
  if (allocation.data != reinterpret_cast<uintptr_t>(data) || (allocation.device == kHost) != of_host)
    return false;
  memory.by_end.erase(found);
  memory.in_use[allocation.device] -= RoundUp(allocation.bytes, kAlignment);
  --memory.count[allocation.device];
  // New pages in the same place, which nobody reaches.
  MILLRACE_CHECK(mmap(allocation.region, allocation.region_bytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED);
  memory.freed.push_back(allocation);
  if (memory.freed.size() > kKeptFreed) {
    munmap(memory.freed.front().region, memory.freed.front().region_bytes);
    memory.freed.pop_front();
  }
  return true;
}

Located Locate(const void* data, size_t bytes) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  const auto first = reinterpret_cast<uintptr_t>(data);
  const auto found = memory.by_end.upper_bound(first);
  if (found == memory.by_end.end() || first + bytes <= found->second.data) return {};
  const Allocation& allocation = found->second;
  const bool whole = first >= allocation.data && first + bytes <= allocation.data + allocation.bytes;
  return {allocation.device == kHost ? Place::kPinned : Place::kDevice, allocation.device, whole};
}

uint64_t BytesInUse(int device) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  return memory.in_use[device];
}

int Allocations(bool of_host) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  int sum = 0;
  for (const auto& [device, count] : memory.count) sum += (device == kHost) == of_host ? count : 0;
  return sum;
}

DeviceAccess::DeviceAccess() {
  const int key = TheMemory().key;
  if (key < 0) return;
  rights_before_ = pkey_get(key);
  pkey_set(key, 0);
}

DeviceAccess::~DeviceAccess() {
  const int key = TheMemory().key;
  if (key >= 0) pkey_set(key, static_cast<unsigned>(rights_before_));
}

bool MemoryIsProtected() {
  return TheMemory().key >= 0;
}

void SetMemory(void* data, int value, size_t bytes) {
  const size_t page = PageBytes();
  const auto first = reinterpret_cast<uintptr_t>(data);
  const uintptr_t inner = RoundUp(first, page), end = (first + bytes) / page * page;
  constexpr size_t kLarge = 1 << 20;
  if (value != 0 || bytes < kLarge) {
    std::memset(data, value, bytes);
    return;
  }
  std::memset(data, 0, inner - first);
  MILLRACE_CHECK(madvise(reinterpret_cast<void*>(inner), end - inner, MADV_DONTNEED) == 0);
  std::memset(reinterpret_cast<void*>(end), 0, first + bytes - end);
}

}  // namespace cuda_on_cpu::internal
