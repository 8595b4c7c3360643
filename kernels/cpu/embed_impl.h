// Embedding rows: dequantised copies of rows of the table.
#pragma once

#include "kernels/cpu/weight_reader.h"
#include "kernels/embed.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

template <class V>
void Embed(const EmbedArgs& args, WorkShare share) {
  const WorkShare::Range rows = share.Of(args.rows);
  const WeightMatrix& table = args.table;
  WithWeightType(table.type, [&]<WeightType type>() {
    for (size_t r = rows.begin; r < rows.end; ++r) {
      const uint8_t* row = table.data + args.ids[r] * table.row_bytes;
      DequantizeRow<V, type>(row, table.columns, args.out + r * table.columns, false);
    }
  });
}

}  // namespace millrace::kernels::cpu
