#include "kernels/sample.h"

namespace millrace::kernels {

size_t SampleEntries(absl::Span<const SampleRow> rows) {
  size_t entries = 0;
  for (const SampleRow& row : rows) entries += row.bias.size() + row.suppressed.size() + row.seen.size();
  return entries;
}

}  // namespace millrace::kernels
