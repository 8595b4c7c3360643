// What code compiled with -fsanitize=thread calls (LLVM's compiler-rt/include/sanitizer/tsan_interface*.h and
// GCC's gcc/sanitizer.def name the functions), in place of the sanitizer's runtime: reports accesses to the
// race detector.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fibers.h"

namespace {

using cuda_on_cpu::internal::Access;
using cuda_on_cpu::internal::shared_access_observer;

void Note(const void* address, size_t bytes, Access access, const void* at) {
  if (cuda_on_cpu::current_thread == nullptr || shared_access_observer == nullptr) return;
  shared_access_observer(address, bytes, access, at);
}

}  // namespace

#define PLAIN_ACCESS(name, bytes, access)                      \
  void name(void* address) {                                   \
    Note(address, bytes, access, __builtin_return_address(0)); \
  }

#define PLAIN_ACCESSES(size)                                    \
  PLAIN_ACCESS(__tsan_read##size, size, Access::kRead)          \
  PLAIN_ACCESS(__tsan_write##size, size, Access::kWrite)        \
  PLAIN_ACCESS(__tsan_volatile_read##size, size, Access::kRead) \
  PLAIN_ACCESS(__tsan_volatile_write##size, size, Access::kWrite)

#define UNALIGNED_ACCESSES(size)                                 \
  PLAIN_ACCESS(__tsan_unaligned_read##size, size, Access::kRead) \
  PLAIN_ACCESS(__tsan_unaligned_write##size, size, Access::kWrite)

#define ATOMIC_CHANGE(bits, name, builtin)                                                                   \
  uint##bits##_t __tsan_atomic##bits##_##name(volatile uint##bits##_t* address, uint##bits##_t value, int) { \
    Note(const_cast<uint##bits##_t*>(address), bits / 8, Access::kAtomic, __builtin_return_address(0));      \
    return builtin(address, value, __ATOMIC_SEQ_CST);                                                        \
  }

#define ATOMIC_EXCHANGE_IF(bits, name)                                                                       \
  int __tsan_atomic##bits##_##name(volatile uint##bits##_t* address, uint##bits##_t* expected,               \
                                   uint##bits##_t value, int, int) {                                         \
    Note(const_cast<uint##bits##_t*>(address), bits / 8, Access::kAtomic, __builtin_return_address(0));      \
    return __atomic_compare_exchange_n(address, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }

#define ATOMICS(bits)                                                                                   \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* address, int) {              \
    Note(const_cast<const uint##bits##_t*>(address), bits / 8, Access::kAtomic,                         \
         __builtin_return_address(0));                                                                  \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                                  \
  }                                                                                                     \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t* address, uint##bits##_t value, int) {       \
    Note(const_cast<uint##bits##_t*>(address), bits / 8, Access::kAtomic, __builtin_return_address(0)); \
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                                     \
  ATOMIC_CHANGE(bits, exchange, __atomic_exchange_n)                                                    \
  ATOMIC_CHANGE(bits, fetch_add, __atomic_fetch_add)                                                    \
  ATOMIC_CHANGE(bits, fetch_sub, __atomic_fetch_sub)                                                    \
  ATOMIC_CHANGE(bits, fetch_and, __atomic_fetch_and)                                                    \
  ATOMIC_CHANGE(bits, fetch_or, __atomic_fetch_or)                                                      \
  ATOMIC_CHANGE(bits, fetch_xor, __atomic_fetch_xor)                                                    \
  ATOMIC_EXCHANGE_IF(bits, compare_exchange_strong)                                                     \
  ATOMIC_EXCHANGE_IF(bits, compare_exchange_weak)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_atomic_thread_fence(int) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int) {}

PLAIN_ACCESSES(1)
PLAIN_ACCESSES(2)
PLAIN_ACCESSES(4)
PLAIN_ACCESSES(8)
PLAIN_ACCESSES(16)
UNALIGNED_ACCESSES(2)
UNALIGNED_ACCESSES(4)
UNALIGNED_ACCESSES(8)
UNALIGNED_ACCESSES(16)
ATOMICS(8)
ATOMICS(16)
ATOMICS(32)
ATOMICS(64)

void __tsan_read_range(void* address, size_t bytes) {
  Note(address, bytes, Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  Note(address, bytes, Access::kWrite, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  Note(from, bytes, Access::kRead, __builtin_return_address(0));
  Note(to, bytes, Access::kWrite, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  Note(from, bytes, Access::kRead, __builtin_return_address(0));
  Note(to, bytes, Access::kWrite, __builtin_return_address(0));
  return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  Note(to, bytes, Access::kWrite, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}

}  // extern "C"
