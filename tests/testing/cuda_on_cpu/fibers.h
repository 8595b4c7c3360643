// The threads of a block as fibers of one OS thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "context.h"
#include "cuda_on_cpu/place.h"
#include "cuda_on_cpu/warp.h"
#include "kernel_launch.h"

namespace cuda_on_cpu::internal {

inline constexpr unsigned kWarpLanes = 32;
inline constexpr unsigned kMaxBlockThreads = 1024;

// Does what a group of lanes came together for: data[lane] is each one's, of those in `lanes`.
using Together = void (*)(void* const data[kWarpLanes], uint32_t lanes);

struct WarpCall {
  Together together = nullptr;
  unsigned mask = 0;
  void* data = nullptr;
  Site site = {"", 0};
  const char* what = "";   // for reports
  bool aligned = false;    // needs all 32 lanes (PTX ISA: .aligned)
  bool same_place = true;  // lanes must be at one place of the source
};

struct AsyncCopy {
  void* shared;
  const void* global;  // null: zeros
  size_t bytes;
};

enum class Access : uint8_t { kRead, kWrite, kAtomic, kReadByWarp };

// Where not null: told of the accesses to shared memory that the stand-in makes for kernels. `at` is in code.
using SharedAccessObserver = void (*)(const void* address, size_t bytes, Access access, const void* at);
extern SharedAccessObserver shared_access_observer;

struct Warp;
class BlockRunner;

struct Lane : ThreadPlace {
  BlockRunner* runner = nullptr;
  Warp* warp = nullptr;
  uint32_t bit = 0;                // 1 << lane
  uint32_t slot = 0;               // 1 << position in the warp's order
  const WarpCall* call = nullptr;  // while it waits
  Context context;
  std::vector<AsyncCopy> copies;
  std::vector<size_t> copy_groups;  // copies before the end of each group
  int barrier_predicate = 0;
  void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

struct Warp {
  Lane* lanes[kWarpLanes];     // by lane
  Lane* in_order[kWarpLanes];  // by slot
  uint32_t existing = 0;       // lanes
  uint32_t existing_slots = 0;
  uint32_t live = 0;        // lanes that have not returned
  uint32_t waiting = 0;     // lanes in a WarpCall
  uint32_t at_barrier = 0;  // lanes
  uint32_t ready = 0;       // slots
  uint32_t slot = 0;        // 1 << position in the block's order
  uint32_t epoch = 0;       // how often all its live lanes met in __syncwarp
};

// One for each OS thread that runs kernels; keeps its stacks from launch to launch.
class BlockRunner {
 public:
  static BlockRunner& OfThisThread();

  BlockRunner();
  ~BlockRunner();
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;

  // Runs block `index` of `launch`; returns when all its threads have returned.
  void Run(const KernelLaunch& launch, uint64_t index, uint64_t seed);

  // What runs the calling fiber.
  static BlockRunner& Running() { return *static_cast<Lane*>(current_thread)->runner; }
  void CallTogether(const WarpCall& call);
  int CrossBarrier(BarrierKind kind, int predicate, Site site);

  const KernelLaunch* launch() const { return launch_; }
  // Grows at each block's start and each barrier.
  uint64_t epoch() const { return epoch_; }

 private:
  void AddLane();
  void PlaceThreads(uint64_t seed);
  void PoisonShared(size_t bytes);
  [[noreturn]] void LaneMain(Lane* lane);
  void FinishSwitch(Lane* self);
  bool TryCall(Warp* warp, unsigned mask);
  void FinishBarrier();
  void Return(Lane* lane);
  void Suspend(Lane* self);
  void SwitchTo(Lane* self, Lane* next);
  Lane* NextReady();
  void MakeReady(Warp* warp, uint32_t slots) {
    warp->ready |= slots;
    ready_warps_ |= warp->slot;
  }
  [[noreturn]] void ReportDeadlock() const;

  std::vector<std::unique_ptr<Lane>> lanes_;  // 32 of each warp
  std::vector<Warp> warps_;
  Warp* warps_in_order_[kWarpLanes] = {};
  uint32_t ready_warps_ = 0;  // positions
  unsigned live_threads_ = 0;
  unsigned at_barrier_ = 0;
  BarrierKind barrier_kind_ = BarrierKind::kPlain;
  Site barrier_site_ = {"", 0};
  int barrier_result_ = 0;
  uint64_t epoch_ = 0;
  BlockPlace place_;
  const KernelLaunch* launch_ = nullptr;
  unsigned char* shared_region_ = nullptr;
  // Whoever runs now, and the context that called Run.
  Lane* previous_ = nullptr;
  Context main_;
  void* main_fake_stack_ = nullptr;
  const void* main_stack_bottom_ = nullptr;
  size_t main_stack_bytes_ = 0;
};

}  // namespace cuda_on_cpu::internal
