#include "cuda_on_cpu/warp.h"

#include <bit>

#include "fibers.h"

namespace cuda_on_cpu::internal {
namespace {

struct ShuffleData {
  Shuffle shuffle;
  uint64_t value;
  uint64_t result;
};

// PTX ISA, shfl.sync: the lane whose value `lane` receives.
unsigned ShuffleSource(const Shuffle& shuffle, unsigned lane) {
  const unsigned segment_mask = kWarpLanes - static_cast<unsigned>(shuffle.width);
  const unsigned first = lane & segment_mask;
  const unsigned last = first | (31u & ~segment_mask);
  const unsigned operand = shuffle.operand & 31u;
  switch (shuffle.kind) {
    case ShuffleKind::kIndex:
      return first | (operand & ~segment_mask);
    case ShuffleKind::kUp:
      return lane >= first + operand ? lane - operand : lane;
    case ShuffleKind::kDown:
      return lane + operand <= last ? lane + operand : lane;
    case ShuffleKind::kXor:
      return (lane ^ operand) <= last ? lane ^ operand : lane;
  }
  return lane;
}

void ShuffleTogether(void* const data[kWarpLanes], uint32_t lanes) {
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(left));
    ShuffleData& mine = *static_cast<ShuffleData*>(data[lane]);
    const unsigned source = ShuffleSource(mine.shuffle, lane);
    mine.result = lanes >> source & 1 ? static_cast<const ShuffleData*>(data[source])->value : ~uint64_t{0};
  }
}

struct VoteData {
  VoteKind kind;
  unsigned value;
};

unsigned Combine(VoteKind kind, unsigned a, unsigned b) {
  switch (kind) {
    case VoteKind::kAdd:
      return a + b;
    case VoteKind::kMin:
      return a < b ? a : b;
    case VoteKind::kMax:
      return a > b ? a : b;
    case VoteKind::kSignedMin:
      return static_cast<int>(a) < static_cast<int>(b) ? a : b;
    case VoteKind::kSignedMax:
      return static_cast<int>(a) > static_cast<int>(b) ? a : b;
    case VoteKind::kAll:
    case VoteKind::kAnd:
      return a & b;
    case VoteKind::kBallot:
    case VoteKind::kAny:
    case VoteKind::kOr:
      return a | b;
    case VoteKind::kXor:
      return a ^ b;
  }
  return 0;
}

void VoteTogether(void* const data[kWarpLanes], uint32_t lanes) {
  const VoteKind kind = static_cast<const VoteData*>(data[std::countr_zero(lanes)])->kind;
  unsigned result = 0;
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    unsigned value = static_cast<const VoteData*>(data[lane])->value;
    if (kind == VoteKind::kBallot) value <<= lane;
    result = left == lanes ? value : Combine(kind, result, value);
  }
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    static_cast<VoteData*>(data[std::countr_zero(left)])->value = result;
  }
}

void SyncTogether(void* const data[kWarpLanes], uint32_t lanes) {
  Warp* const warp = static_cast<Lane*>(data[std::countr_zero(lanes)])->warp;
  if (lanes == warp->live) ++warp->epoch;
}

}  // namespace

int SyncBlock(BarrierKind kind, int predicate, Site site) {
  return BlockRunner::Running().CrossBarrier(kind, predicate, site);
}

void SyncWarp(unsigned mask, Site site) {
  WarpCall call;
  call.together = SyncTogether;
  call.mask = mask;
  call.data = static_cast<Lane*>(current_thread);
  call.site = site;
  call.what = "__syncwarp";
  call.same_place = false;
  BlockRunner::Running().CallTogether(call);
}

uint64_t ShuffleBits(const Shuffle& shuffle, uint64_t value, Site site) {
  if (shuffle.width < 1 || shuffle.width > 32 || !std::has_single_bit(static_cast<unsigned>(shuffle.width))) {
    Fail("the width of a shuffle is a power of two, at most 32", site);
  }
  ShuffleData data = {shuffle, value, 0};
  WarpCall call;
  call.together = ShuffleTogether;
  call.mask = shuffle.mask;
  call.data = &data;
  call.site = site;
  call.what = "a shuffle";
  BlockRunner::Running().CallTogether(call);
  return data.result;
}

unsigned Vote(VoteKind kind, unsigned mask, unsigned value, Site site) {
  VoteData data = {kind, value};
  WarpCall call;
  call.together = VoteTogether;
  call.mask = mask;
  call.data = &data;
  call.site = site;
  call.what = "a vote or reduction";
  BlockRunner::Running().CallTogether(call);
  return data.value;
}

}  // namespace cuda_on_cpu::internal
