#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "random.h"

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_CPU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_ON_CPU_ASAN 1
#endif
#endif
#ifdef CUDA_ON_CPU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

constinit thread_local ThreadPlace* current_thread __attribute__((tls_model("initial-exec"))) = nullptr;

namespace internal {

SharedAccessObserver shared_access_observer = nullptr;

namespace {

constexpr size_t kMaxSharedBytes = 256 * 1024;
#ifdef CUDA_ON_CPU_ASAN
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

size_t PageBytes() {
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

void* MapMemory(size_t bytes) {
  void* memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MILLRACE_CHECK(memory != MAP_FAILED);
  return memory;
}

// With an unmapped page below it. Tops differ in their lowest bits, lest the lanes of a warp compete for the
// same lines of the cache.
void MakeStack(Lane* lane, unsigned index) {
  const size_t page = PageBytes();
  void* const memory = MapMemory(kStackBytes + page);
  MILLRACE_CHECK(mprotect(memory, page, PROT_NONE) == 0);
  lane->stack_bottom = static_cast<char*>(memory) + page;
  lane->stack_bytes = kStackBytes - index % kWarpLanes * 192;
}

void FreeStack(const Lane& lane) {
  const size_t page = PageBytes();
#ifdef CUDA_ON_CPU_ASAN
  ASAN_UNPOISON_MEMORY_REGION(lane.stack_bottom, kStackBytes);
#endif
  munmap(static_cast<char*>(lane.stack_bottom) - page, kStackBytes + page);
}

template <class Number>
void Mix(Random* random, Number* begin, unsigned count) {
  for (unsigned i = count; i > 1; --i) std::swap(begin[i - 1], begin[random->Below(i)]);
}

uint32_t LowBits(unsigned count) {
  return count >= 32 ? ~0u : (1u << count) - 1;
}

bool SamePlace(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

uint32_t SlotsOf(const Warp& warp, uint32_t lanes) {
  if (lanes == warp.existing) return warp.existing_slots;
  uint32_t slots = 0;
  for (; lanes != 0; lanes &= lanes - 1) slots |= warp.lanes[std::countr_zero(lanes)]->slot;
  return slots;
}

std::string Text(Site site) {
  return absl::StrCat(site.file, ":", site.line);
}

}  // namespace

BlockRunner& BlockRunner::OfThisThread() {
  thread_local std::unique_ptr<BlockRunner> runner;
  if (runner == nullptr) runner = std::make_unique<BlockRunner>();
  return *runner;
}

BlockRunner::BlockRunner() {
  const size_t page = PageBytes();
  shared_region_ = static_cast<unsigned char*>(MapMemory(kMaxSharedBytes + 2 * page));
  MILLRACE_CHECK(mprotect(shared_region_, page, PROT_NONE) == 0);
  MILLRACE_CHECK(mprotect(shared_region_ + page + kMaxSharedBytes, page, PROT_NONE) == 0);
}

// The lanes wait in Return for blocks that do not come; nothing on their stacks needs to be destroyed.
BlockRunner::~BlockRunner() {
  for (const auto& lane : lanes_) FreeStack(*lane);
  munmap(shared_region_, kMaxSharedBytes + 2 * PageBytes());
}

void BlockRunner::AddLane() {
  auto lane = std::make_unique<Lane>();
  lane->runner = this;
  MakeStack(lane.get(), static_cast<unsigned>(lanes_.size()));
  const auto entry = [](void* started) {
    static_cast<Lane*>(started)->runner->LaneMain(static_cast<Lane*>(started));
  };
  PrepareContext(&lane->context, lane->stack_bottom, lane->stack_bytes, entry, lane.get());
  lanes_.push_back(std::move(lane));
}

void BlockRunner::LaneMain(Lane* lane) {
  FinishSwitch(lane);
  while (true) {
    launch_->thread_body();
    Return(lane);
  }
}

void BlockRunner::FinishSwitch([[maybe_unused]] Lane* self) {
#ifdef CUDA_ON_CPU_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(self == nullptr ? main_fake_stack_ : self->fake_stack, &bottom, &bytes);
  if (previous_ == nullptr) {
    main_stack_bottom_ = bottom;
    main_stack_bytes_ = bytes;
  }
#endif
}

// A null lane is the context that called Run.
void BlockRunner::SwitchTo(Lane* self, Lane* next) {
  previous_ = self;
  current_thread = next;
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_start_switch_fiber(self == nullptr ? &main_fake_stack_ : &self->fake_stack,
                                 next == nullptr ? main_stack_bottom_ : next->stack_bottom,
                                 next == nullptr ? main_stack_bytes_ : next->stack_bytes);
#endif
  SwitchContext(self == nullptr ? &main_ : &self->context, next == nullptr ? &main_ : &next->context);
  FinishSwitch(self);
}

Lane* BlockRunner::NextReady() {
  for (; ready_warps_ != 0; ready_warps_ &= ready_warps_ - 1) {
    Warp* const warp = warps_in_order_[std::countr_zero(ready_warps_)];
    if (warp->ready == 0) continue;
    Lane* const lane = warp->in_order[std::countr_zero(warp->ready)];
    warp->ready &= warp->ready - 1;
    return lane;
  }
  return nullptr;
}

void BlockRunner::Suspend(Lane* self) {
  Lane* const next = NextReady();
  if (next == nullptr) ReportDeadlock();
  if (next != self) SwitchTo(self, next);
}

void BlockRunner::PoisonShared(size_t bytes) {
  constexpr size_t kAlignment = 16;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  MILLRACE_CHECK(rounded <= kMaxSharedBytes);
  place_.shared = shared_region_ + PageBytes() + kMaxSharedBytes - rounded;
  place_.shared_bytes = bytes;
  std::memset(place_.shared, 0xff, rounded);
}

void BlockRunner::PlaceThreads(uint64_t seed) {
  const dim3 block = launch_->block;
  const unsigned threads = block.x * block.y * block.z;
  const unsigned warps = (threads + kWarpLanes - 1) / kWarpLanes;
  MILLRACE_CHECK(warps <= kWarpLanes);
  while (lanes_.size() < size_t{warps} * kWarpLanes) AddLane();
  warps_.resize(warps);
  Random random(seed);
  std::array<uint8_t, kWarpLanes> lane_order, warp_order;
  std::iota(lane_order.begin(), lane_order.end(), 0);
  std::iota(warp_order.begin(), warp_order.end(), 0);
  if (seed != 0) {
    Mix(&random, lane_order.data(), kWarpLanes);
    Mix(&random, warp_order.data(), warps);
  }
  for (unsigned w = 0; w < warps; ++w) {
    Warp& warp = warps_[w];
    const unsigned count = std::min(kWarpLanes, threads - w * kWarpLanes);
    warp.existing = warp.live = LowBits(count);
    warp.existing_slots = 0;
    warp.waiting = warp.at_barrier = warp.epoch = 0;
    for (unsigned slot = 0; slot < kWarpLanes; ++slot) {
      const unsigned number = lane_order[slot];
      const unsigned thread = w * kWarpLanes + number;
      Lane* const lane = lanes_[w * kWarpLanes + slot].get();
      lane->warp = &warp;
      lane->bit = 1u << number;
      lane->slot = 1u << slot;
      lane->block = &place_;
      lane->thread_index = {thread % block.x, thread / block.x % block.y, thread / (block.x * block.y)};
      warp.lanes[number] = warp.in_order[slot] = lane;
      if (number < count) warp.existing_slots |= lane->slot;
    }
    warp.ready = warp.existing_slots;
  }
  for (unsigned i = 0; i < warps; ++i) {
    warps_in_order_[i] = &warps_[warp_order[i]];
    warps_in_order_[i]->slot = 1u << i;
  }
  ready_warps_ = LowBits(warps);
  live_threads_ = threads;
  at_barrier_ = 0;
  ++epoch_;
}

void BlockRunner::Run(const KernelLaunch& launch, uint64_t index, uint64_t seed) {
  MILLRACE_CHECK(current_thread == nullptr);
  launch_ = &launch;
  place_.grid_dim = launch.grid;
  place_.block_dim = launch.block;
  const uint64_t rest = index / launch.grid.x;
  place_.block_index = {static_cast<unsigned>(index % launch.grid.x),
                        static_cast<unsigned>(rest % launch.grid.y),
                        static_cast<unsigned>(rest / launch.grid.y)};
  PoisonShared(launch.shared_bytes);
  PlaceThreads(seed);
  SwitchTo(nullptr, NextReady());
  launch_ = nullptr;
}

void BlockRunner::Return(Lane* lane) {
  Warp* const warp = lane->warp;
  warp->live &= ~lane->bit;
  --live_threads_;
  lane->copies.clear();
  lane->copy_groups.clear();
  // The last that others wait for may be this one, which will not come.
  for (uint32_t waiting = warp->waiting; waiting != 0; waiting &= warp->waiting & (waiting - 1)) {
    TryCall(warp, warp->lanes[std::countr_zero(waiting)]->call->mask);
  }
  if (live_threads_ != 0 && at_barrier_ == live_threads_) FinishBarrier();
  Lane* next = nullptr;
  if (live_threads_ != 0) {
    next = NextReady();
    if (next == nullptr) ReportDeadlock();
  }
  SwitchTo(lane, next);
}

void BlockRunner::CallTogether(const WarpCall& call) {
  Lane* const lane = static_cast<Lane*>(current_thread);
  Warp* const warp = lane->warp;
  if ((call.mask & lane->bit) == 0) Fail("the mask lacks the calling lane", call.site);
  lane->call = &call;
  warp->waiting |= lane->bit;
  if (TryCall(warp, call.mask)) {
    warp->ready &= ~lane->slot;
  } else {
    Suspend(lane);
  }
}

// True: all lanes of `mask` were there, and are ready now.
bool BlockRunner::TryCall(Warp* warp, unsigned mask) {
  const uint32_t lanes = mask & warp->live;
  if ((warp->waiting & lanes) != lanes || lanes == 0) return false;
  void* data[kWarpLanes];
  const WarpCall& first = *warp->lanes[std::countr_zero(lanes)]->call;
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    const int number = std::countr_zero(left);
    const WarpCall& call = *warp->lanes[number]->call;
    if (call.mask != mask) return false;
    if (call.together != first.together || (call.same_place && !SamePlace(call.site, first.site))) {
      const std::string what = absl::StrCat("lanes of one warp are at different calls: ", first.what, " at ",
                                            Text(first.site), ", ", call.what);
      Fail(what.c_str(), call.site);
    }
    data[number] = call.data;
  }
  if (first.aligned && lanes != ~0u) Fail("needs all 32 lanes of the warp", first.site);
  first.together(data, lanes);
  warp->waiting &= ~lanes;
  MakeReady(warp, SlotsOf(*warp, lanes));
  return true;
}

int BlockRunner::CrossBarrier(BarrierKind kind, int predicate, Site site) {
  Lane* const lane = static_cast<Lane*>(current_thread);
  if (at_barrier_ == 0) {
    barrier_kind_ = kind;
    barrier_site_ = site;
  } else if (kind != barrier_kind_ || !SamePlace(site, barrier_site_)) {
    const std::string what =
        absl::StrCat("threads of one block are at different barriers; others: ", Text(barrier_site_));
    Fail(what.c_str(), site);
  }
  lane->barrier_predicate = predicate;
  lane->warp->at_barrier |= lane->bit;
  if (++at_barrier_ == live_threads_) FinishBarrier();
  Suspend(lane);
  return barrier_result_;
}

void BlockRunner::FinishBarrier() {
  ++epoch_;
  int count = 0;
  for (Warp& warp : warps_) {
    if (barrier_kind_ != BarrierKind::kPlain) {
      for (uint32_t left = warp.at_barrier; left != 0; left &= left - 1) {
        count += warp.lanes[std::countr_zero(left)]->barrier_predicate != 0;
      }
    }
    MakeReady(&warp, SlotsOf(warp, warp.at_barrier));
    warp.at_barrier = 0;
  }
  switch (barrier_kind_) {
    case BarrierKind::kPlain:
      break;
    case BarrierKind::kCount:
      barrier_result_ = count;
      break;
    case BarrierKind::kAnd:
      barrier_result_ = static_cast<unsigned>(count) == at_barrier_;
      break;
    case BarrierKind::kOr:
      barrier_result_ = count != 0;
      break;
  }
  at_barrier_ = 0;
}

void BlockRunner::ReportDeadlock() const {
  std::map<std::string, std::pair<unsigned, unsigned>> waits;  // where: how many, the first thread
  for (size_t w = 0; w < warps_.size(); ++w) {
    const Warp& warp = warps_[w];
    for (unsigned i = 0; i < kWarpLanes; ++i) {
      std::string where;
      if (warp.at_barrier >> i & 1) {
        where = absl::StrCat("a barrier of the block at ", Text(barrier_site_));
      } else if (warp.waiting >> i & 1) {
        where = absl::StrCat(warp.lanes[i]->call->what, " at ", Text(warp.lanes[i]->call->site));
      } else {
        continue;
      }
      auto& [count, first] =
          waits.try_emplace(where, 0u, static_cast<unsigned>(w * kWarpLanes + i)).first->second;
      ++count;
    }
  }
  std::fprintf(stderr,
               "cuda_on_cpu: deadlock in kernel %s, block (%u, %u, %u): %u threads have not returned\n",
               KernelName(launch_->function).c_str(), place_.block_index.x, place_.block_index.y,
               place_.block_index.z, live_threads_);
  for (const auto& [where, threads] : waits) {
    std::fprintf(stderr, "  %u threads, the first being thread %u, wait in %s\n", threads.first,
                 threads.second, where.c_str());
  }
  std::abort();
}

}  // namespace internal

std::string DescribePlace() {
  if (current_thread == nullptr) return "";
  const auto text = [](const auto& index) {
    return absl::StrCat("(", index.x, ", ", index.y, ", ", index.z, ")");
  };
  return absl::StrCat("kernel ", KernelName(internal::BlockRunner::Running().launch()->function), ", block ",
                      text(current_thread->block->block_index), ", thread ",
                      text(current_thread->thread_index));
}

void Fail(const char* what, Site site) {
  std::fprintf(stderr, "cuda_on_cpu: %s:%d: %s: %s\n", site.file, site.line, DescribePlace().c_str(), what);
  std::abort();
}

}  // namespace cuda_on_cpu
