// Atomic functions on global and shared memory, and fences.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <type_traits>

namespace cuda_on_cpu::internal {

template <class T>
concept AtomicWord = std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||
    std::is_same_v<T, unsigned long long> || std::is_same_v<T, long long>;

template <class T, class Change>
T ChangeAtomically(T* address, Change change) {
  std::atomic_ref<T> value(*address);
  T old = value.load();
  while (!value.compare_exchange_weak(old, change(old))) {
  }
  return old;
}

}  // namespace cuda_on_cpu::internal

// Each returns the value that was there before.
template <cuda_on_cpu::internal::AtomicWord T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_add(value);
}

inline float atomicAdd(float* address, float value) {
  return cuda_on_cpu::internal::ChangeAtomically(address, [=](float old) { return old + value; });
}

template <cuda_on_cpu::internal::AtomicWord T>
T atomicSub(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_sub(value);
}

template <cuda_on_cpu::internal::AtomicWord T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::internal::ChangeAtomically(address, [=](T old) { return old > value ? old : value; });
}

template <cuda_on_cpu::internal::AtomicWord T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::internal::ChangeAtomically(address, [=](T old) { return old < value ? old : value; });
}

template <cuda_on_cpu::internal::AtomicWord T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_or(value);
}

template <cuda_on_cpu::internal::AtomicWord T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_and(value);
}

template <cuda_on_cpu::internal::AtomicWord T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).exchange(value);
}

template <cuda_on_cpu::internal::AtomicWord T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  std::atomic_ref<T>(*address).compare_exchange_strong(expected, value);
  return expected;
}

// Wraps to 0 behind `limit`.
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return cuda_on_cpu::internal::ChangeAtomically(address,
                                                 [=](unsigned old) { return old >= limit ? 0u : old + 1; });
}

inline void __threadfence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
inline void __threadfence_block() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
inline void __threadfence_system() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
