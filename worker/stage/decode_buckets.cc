#include "worker/stage/decode_buckets.h"

#include <algorithm>

namespace millrace {

std::vector<uint32_t> DecodeBuckets(uint32_t max_rows) {
  std::vector<uint32_t> buckets;
  for (uint32_t rows : {1u, 2u, 4u, 8u, 16u, 24u, 32u, 48u, 64u, 96u, 128u, 192u, 256u}) {
    buckets.push_back(std::min(rows, max_rows));
    if (rows >= max_rows) break;
  }
  return buckets;
}

}  // namespace millrace
