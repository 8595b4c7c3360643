// Sizes that microbatches of decodes are padded to, so that a few recorded sequences of work serve them all.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace {

// Rising; the last serves all microbatches of max_rows rows or fewer, unless that is more than 256: larger
// ones keep a device busy however their work is enqueued. At most half of a microbatch of more than 2 rows is
// padding.
std::vector<uint32_t> DecodeBuckets(uint32_t max_rows);

}  // namespace millrace
