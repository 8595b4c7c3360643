#include "context.h"

#include <cstdint>

#include "common/check.h"

#ifdef __x86_64__

// System V Application Binary Interface, AMD64: rbx, rbp and r12 to r15 are the callee's to keep.
asm(R"(
  .text
  .p2align 4
  .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_on_cpu_switch, .-cuda_on_cpu_switch

  .p2align 4
  .type cuda_on_cpu_start, @function
cuda_on_cpu_start:
  movq %r12, %rdi
  call *%r13
  ud2
  .size cuda_on_cpu_start, .-cuda_on_cpu_start
)");

extern "C" {
void cuda_on_cpu_switch(void** save, void* load);
void cuda_on_cpu_start();
}

namespace cuda_on_cpu::internal {

void PrepareContext(Context* context, void* stack_bottom, size_t stack_bytes, void (*entry)(void*),
                    void* argument) {
  // What cuda_on_cpu_switch pops, and where it returns to.
  struct Frame {
    void* r15;
    void* r14;
    void* r13;
    void* r12;
    void* rbx;
    void* rbp;
    void* return_address;
  };
  constexpr uintptr_t kAlignment = 16;
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack_bottom) + stack_bytes) / kAlignment * kAlignment;
  // The stack is aligned before cuda_on_cpu_start's call.
  Frame* const frame = reinterpret_cast<Frame*>(top) - 1;
  *frame = {};
  frame->r13 = reinterpret_cast<void*>(entry);
  frame->r12 = argument;
  frame->return_address = reinterpret_cast<void*>(cuda_on_cpu_start);
  context->stack_pointer = frame;
}

void SwitchContext(Context* from, Context* to) {
  cuda_on_cpu_switch(&from->stack_pointer, to->stack_pointer);
}

}  // namespace cuda_on_cpu::internal

#else

namespace cuda_on_cpu::internal {
namespace {

// makecontext passes ints.
void Start(unsigned entry_high, unsigned entry_low, unsigned argument_high, unsigned argument_low) {
  const auto pointer = [](unsigned high, unsigned low) {
    return reinterpret_cast<void*>(static_cast<uintptr_t>(high) << 32 | low);
  };
  reinterpret_cast<void (*)(void*)>(pointer(entry_high, entry_low))(pointer(argument_high, argument_low));
}

}  // namespace

void PrepareContext(Context* context, void* stack_bottom, size_t stack_bytes, void (*entry)(void*),
                    void* argument) {
  MILLRACE_CHECK(getcontext(&context->state) == 0);
  context->state.uc_stack.ss_sp = stack_bottom;
  context->state.uc_stack.ss_size = stack_bytes;
  const auto code = reinterpret_cast<uintptr_t>(entry), data = reinterpret_cast<uintptr_t>(argument);
  makecontext(&context->state, reinterpret_cast<void (*)()>(Start), 4, static_cast<unsigned>(code >> 32),
              static_cast<unsigned>(code), static_cast<unsigned>(data >> 32), static_cast<unsigned>(data));
}

void SwitchContext(Context* from, Context* to) {
  MILLRACE_CHECK(swapcontext(&from->state, &to->state) == 0);
}

}  // namespace cuda_on_cpu::internal

#endif
