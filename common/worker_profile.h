// How fast a worker runs the parts of a model, as measured when it joins.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace {

// One measured microbatch: `sequences` sequences with `rows / sequences` consecutive new positions each, that
// had `context` tokens before. sequences == rows: decode; sequences == 1: prefill.
struct ProfilePoint {
  uint32_t rows = 0;
  uint32_t sequences = 0;
  uint32_t context = 0;
  double seconds = 0;  // median
};

struct WorkerProfile {
  double layer_elements = 0;        // matrix elements of the transformer layer that was measured
  std::vector<ProfilePoint> layer;  // that layer alone
  std::vector<ProfilePoint> head;   // output norm, output matrix and greedy sampling of `rows` rows
  double overhead_seconds = 0;      // of a microbatch outside layers and head
};

}  // namespace millrace
