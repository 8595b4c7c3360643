#include "kernels/cpu/make_op_table.h"
#include "kernels/cpu/part_avx512.h"

namespace millrace::kernels::cpu {

constinit const OpTable kAvx512Ops = MakeOpTable<Avx512Part>();

}  // namespace millrace::kernels::cpu
