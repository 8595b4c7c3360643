// Vectors stay in registers only where the functions that take them are inlined, which compilers stop doing
// in large kernels.
//
// Not forced where it would buy nothing and cost minutes of compiling: in sanitizer builds, and without an
// fma instruction, where every fma is a call anyway.
#pragma once

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define MILLRACE_KERNEL_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MILLRACE_KERNEL_SANITIZED
#endif

#if defined(MILLRACE_KERNEL_SANITIZED) || !(defined(__FMA__) || defined(__aarch64__))
#define MILLRACE_KERNEL_INLINE inline
#else
#define MILLRACE_KERNEL_INLINE inline __attribute__((always_inline))
#endif
