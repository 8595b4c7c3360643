#include "kernels/cpu/int8_avx512.h"
#include "kernels/cpu/make_op_table.h"

namespace millrace::kernels::cpu {

constinit const OpTable kAvx512Ops = MakeOpTable<Int8Avx512>();

}  // namespace millrace::kernels::cpu
