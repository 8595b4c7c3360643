#include "kernels/cpu/make_op_table.h"
#include "kernels/cpu/part_portable.h"

namespace millrace::kernels::cpu {

constinit const OpTable kPortableOps = MakeOpTable<PortablePart>();

}  // namespace millrace::kernels::cpu
