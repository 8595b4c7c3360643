#include "kernels/cpu/make_op_table.h"
#include "kernels/cpu/part_avx2.h"

namespace millrace::kernels::cpu {

constinit const OpTable kAvx2Ops = MakeOpTable<Avx2Part>();

}  // namespace millrace::kernels::cpu
