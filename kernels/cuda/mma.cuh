// All the PTX that Millrace uses: products on tensor cores, the loads that feed them, and copies that run
// beside computing. Layouts and semantics: PTX ISA 8.5, 9.7.14.5 "Matrix multiply-accumulate operation using
// mma instruction" and 9.7.9.25 "cp.async". Every function is called by all 32 lanes of a warp together,
// except the cp_async ones, which belong to one thread each.
//
// Fragments, with g = lane / 4 and t = lane % 4:
//
//   mma m16n8k32, 8-bit integers: register i of `a` holds bytes 4 t + (0..3) + 16 (i / 2) of row g + 8 (i %
//   2) of A (16 rows x 32); register i of `b` holds rows 4 t + (0..3) + 16 i of column g of B (32 x 8). mma
//   m16n8k16, 16-bit floats: register i of `a` holds columns 2 t + (0..1) + 8 (i / 2) of row g + 8 (i % 2) of
//   A (16 x 16); register i of `b` holds rows 2 t + (0..1) + 8 i of column g of B (16 x 8). Both: d[i] is row
//   g + 8 (i / 2), column 2 t + i % 2 of D (16 x 8). The lowest index lies in the lowest bits.
//
//   ldmatrix loads matrices of 8 rows of 16 bytes: `row` of lanes 8 m .. 8 m + 7 are the rows of matrix m (of
//   other lanes it is not read, but must be a valid address); d[m] becomes bytes 4 t .. 4 t + 3 of row g of
//   matrix m: with 16-bit elements, columns 2 t and 2 t + 1 of row g. _trans: of the transposed matrix, whose
//   elements are of 16 bits. `row` is 16-byte aligned and lies in shared memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernel.cuh"

#ifndef __CUDACC__
#include "cuda_on_cpu/mma.h"
#endif

namespace millrace::kernels::cuda {

#ifdef __CUDACC__

// d += A * B, exactly (mod 2^32).
__device__ __forceinline__ void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += A * B of float16 elements. Products are exact; how the 16 of them and d are rounded while being
// added is unspecified, but the same for every column of B.
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of bfloat16 elements.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The address that instructions on shared memory take.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void ldmatrix_x1(uint32_t (&d)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(d[0])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&d)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(d[0]), "=r"(d[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x1_trans(uint32_t (&d)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(d[0])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&d)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(d[0]), "=r"(d[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts copying 16 bytes, aligned to 16, from global to shared memory; not `valid`: zeros, and `global` is
// not read. What arrives is seen by the copying thread after the cp_async_wait that covers it, by other
// threads after a barrier that follows that wait.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}

// The same of 8 bytes, aligned to 8.
__device__ __forceinline__ void cp_async_8(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 8 : 0)
               : "memory");
}

// The same of 4 bytes, aligned to 4.
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 4 : 0)
               : "memory");
}

// Makes one group of the copies that this thread started since its last group; it may be empty.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the `pending` latest groups of this thread are still on their way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#else

using ::cuda_on_cpu::cp_async_16;
using ::cuda_on_cpu::cp_async_4;
using ::cuda_on_cpu::cp_async_8;
using ::cuda_on_cpu::cp_async_commit;
using ::cuda_on_cpu::cp_async_wait;
using ::cuda_on_cpu::ldmatrix_x1;
using ::cuda_on_cpu::ldmatrix_x1_trans;
using ::cuda_on_cpu::ldmatrix_x2;
using ::cuda_on_cpu::ldmatrix_x2_trans;
using ::cuda_on_cpu::ldmatrix_x4;
using ::cuda_on_cpu::ldmatrix_x4_trans;
using ::cuda_on_cpu::mma_bf16;
using ::cuda_on_cpu::mma_f16;
using ::cuda_on_cpu::mma_s8;

#endif

}  // namespace millrace::kernels::cuda
