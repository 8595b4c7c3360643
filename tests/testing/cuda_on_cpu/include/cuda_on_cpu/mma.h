// Stand-ins of kernels/cuda/mma.cuh, by the fragment layouts of PTX ISA 8.5, 9.7.14.5.
#pragma once

#include <cstdint>

#include "cuda_on_cpu/place.h"

namespace cuda_on_cpu {

void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::Here());
// Adds products of rising row of B in float32, one rounding each.
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::Here());
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::Here());

void ldmatrix_x1(uint32_t (&d)[1], const void* row, Site site = Site::Here());
void ldmatrix_x2(uint32_t (&d)[2], const void* row, Site site = Site::Here());
void ldmatrix_x4(uint32_t (&d)[4], const void* row, Site site = Site::Here());
void ldmatrix_x1_trans(uint32_t (&d)[1], const void* row, Site site = Site::Here());
void ldmatrix_x2_trans(uint32_t (&d)[2], const void* row, Site site = Site::Here());
void ldmatrix_x4_trans(uint32_t (&d)[4], const void* row, Site site = Site::Here());

// The destination holds bytes 0xff from the call to the wait that covers it; the source is read at that wait.
void cp_async_16(void* shared, const void* global, bool valid, Site site = Site::Here());
void cp_async_8(void* shared, const void* global, bool valid, Site site = Site::Here());
void cp_async_4(void* shared, const void* global, bool valid, Site site = Site::Here());
void cp_async_commit();
void WaitForCopies(int pending);
template <int pending>
void cp_async_wait() {
  WaitForCopies(pending);
}

}  // namespace cuda_on_cpu
