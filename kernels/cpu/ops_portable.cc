#include "kernels/cpu/int8_portable.h"
#include "kernels/cpu/make_op_table.h"

namespace millrace::kernels::cpu {

constinit const OpTable kPortableOps = MakeOpTable<Int8Portable>();

}  // namespace millrace::kernels::cpu
