// Only what is its own: a template that the AVX-512 file instantiates too would exist once, with instructions
// from here.
#include "kernels/cpu/int8_avx512vnni.h"
#include "kernels/cpu/matmul_int8_impl.h"
#include "kernels/cpu/op_table.h"

namespace millrace::kernels::cpu {

constinit const PackedMatMulOp kAvx512VnniPackedMatMul = PackedMatMul<Int8Avx512Vnni>;

}  // namespace millrace::kernels::cpu
