// Embedding rows: dequantised copies of rows of the table.
#pragma once

#include "kernels/cpu/weight_reader.h"
#include "kernels/embed.h"

namespace millrace::kernels::cpu {

template <class V>
void Embed(const EmbedArgs& args) {
  const WeightMatrix& table = args.table;
  WithWeightType(table.type, [&]<WeightType type>() {
    for (size_t r = 0; r < args.rows; ++r) {
      const uint8_t* row = table.data + args.ids[r] * table.row_bytes;
      DequantizeRow<V, type>(row, table.columns, args.out + r * table.columns, false);
    }
  });
}

}  // namespace millrace::kernels::cpu
