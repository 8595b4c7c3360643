// Switching between stacks. Calls and returns stay in pairs, so that the processor predicts the returns of
// what it switches to (Boost.Context jumps, and costs five times as much here); signal masks and
// floating-point modes are shared.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace cuda_on_cpu::internal {

struct Context {
#ifdef __x86_64__
  void* stack_pointer = nullptr;
#else
  ucontext_t state;
#endif
};

// The first switch to `context` calls entry(argument) on the stack; entry never returns.
void PrepareContext(Context* context, void* stack_bottom, size_t stack_bytes, void (*entry)(void*),
                    void* argument);

// Leaves what runs in `from` and goes on with `to`; returns at a later switch to `from`.
void SwitchContext(Context* from, Context* to);

}  // namespace cuda_on_cpu::internal
