#include "kernels/matmul.h"
#include "kernels/reference/ops.h"

namespace millrace::kernels::reference {

void AddPartials(const AddPartialsArgs& args) {
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t i = args.begin; i < args.end; ++i) {
      for (const float* partial : args.partials)
        args.out[r * args.columns + i] += partial[r * args.columns + i];
    }
  }
}

}  // namespace millrace::kernels::reference
