// Barriers, votes and shuffles: CUDA C++ Programming Guide, "Synchronization Functions", "Warp Vote
// Functions", "Warp Shuffle Functions", "Warp Reduce Functions".
//
// A lane waits until all lanes of the mask that have not returned are at the same call; a lane that calls
// something else with the same mask, or never comes, ends the process with a report.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_on_cpu/place.h"

namespace cuda_on_cpu::internal {

enum class BarrierKind : uint8_t { kPlain, kCount, kAnd, kOr };

// Waits for the block's threads that have not returned; returns the reduction of their predicates.
int SyncBlock(BarrierKind kind, int predicate, Site site);
void SyncWarp(unsigned mask, Site site);

enum class ShuffleKind : uint8_t { kIndex, kUp, kDown, kXor };
struct Shuffle {
  ShuffleKind kind;
  unsigned mask;
  unsigned operand;  // lane, distance or mask of lane bits
  int width;
};
// Lanes whose source does not take part get bytes 0xff.
uint64_t ShuffleBits(const Shuffle& shuffle, uint64_t value, Site site);

enum class VoteKind : uint8_t {
  kBallot,
  kAny,
  kAll,
  kAdd,
  kMin,
  kMax,
  kAnd,
  kOr,
  kXor,
  kSignedMin,
  kSignedMax
};
unsigned Vote(VoteKind kind, unsigned mask, unsigned value, Site site);

template <class T>
T ShuffleValue(const Shuffle& shuffle, const T& value, Site site) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, static_cast<const void*>(&value), sizeof(T));
  bits = ShuffleBits(shuffle, bits, site);
  T result;
  std::memcpy(static_cast<void*>(&result), &bits, sizeof(T));
  return result;
}

}  // namespace cuda_on_cpu::internal

using MillraceSite = cuda_on_cpu::Site;

inline constexpr int warpSize = 32;

inline void __syncthreads(MillraceSite site = MillraceSite::Here()) {
  cuda_on_cpu::internal::SyncBlock(cuda_on_cpu::internal::BarrierKind::kPlain, 0, site);
}
inline int __syncthreads_count(int predicate, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::SyncBlock(cuda_on_cpu::internal::BarrierKind::kCount, predicate, site);
}
inline int __syncthreads_and(int predicate, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::SyncBlock(cuda_on_cpu::internal::BarrierKind::kAnd, predicate, site);
}
inline int __syncthreads_or(int predicate, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::SyncBlock(cuda_on_cpu::internal::BarrierKind::kOr, predicate, site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, MillraceSite site = MillraceSite::Here()) {
  cuda_on_cpu::internal::SyncWarp(mask, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::ShuffleValue(
      {cuda_on_cpu::internal::ShuffleKind::kIndex, mask, static_cast<unsigned>(lane), width}, value, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::ShuffleValue({cuda_on_cpu::internal::ShuffleKind::kUp, mask, delta, width},
                                             value, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::ShuffleValue({cuda_on_cpu::internal::ShuffleKind::kDown, mask, delta, width},
                                             value, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::ShuffleValue(
      {cuda_on_cpu::internal::ShuffleKind::kXor, mask, static_cast<unsigned>(lane_mask), width}, value, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kBallot, mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kAny, mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kAll, mask, predicate != 0, site) != 0;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kAdd, mask, value, site);
}
inline int __reduce_add_sync(unsigned mask, int value, MillraceSite site = MillraceSite::Here()) {
  return static_cast<int>(cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kAdd, mask,
                                                      static_cast<unsigned>(value), site));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kMin, mask, value, site);
}
inline int __reduce_min_sync(unsigned mask, int value, MillraceSite site = MillraceSite::Here()) {
  return static_cast<int>(cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kSignedMin, mask,
                                                      static_cast<unsigned>(value), site));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kMax, mask, value, site);
}
inline int __reduce_max_sync(unsigned mask, int value, MillraceSite site = MillraceSite::Here()) {
  return static_cast<int>(cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kSignedMax, mask,
                                                      static_cast<unsigned>(value), site));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kAnd, mask, value, site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kOr, mask, value, site);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, MillraceSite site = MillraceSite::Here()) {
  return cuda_on_cpu::internal::Vote(cuda_on_cpu::internal::VoteKind::kXor, mask, value, site);
}
