#include "kernels/embed.h"

#include "kernels/reference/dequantize.h"
#include "kernels/reference/ops.h"

namespace millrace::kernels::reference {

void Embed(const EmbedArgs& args) {
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t c = 0; c < args.table.columns; ++c) {
      args.out[r * args.table.columns + c] = WeightAt(args.table, args.ids[r], c);
    }
  }
}

}  // namespace millrace::kernels::reference
