#include "kernels/cpu/int8_avx2.h"
#include "kernels/cpu/make_op_table.h"

namespace millrace::kernels::cpu {

constinit const OpTable kAvx2Ops = MakeOpTable<Int8Avx2>();

}  // namespace millrace::kernels::cpu
