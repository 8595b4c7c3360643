// Which stage gets which layers: pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace millrace {

struct LayerRange {
  uint32_t first = 0;
  uint32_t count = 0;
  friend bool operator==(const LayerRange& a, const LayerRange& b) {
    return a.first == b.first && a.count == b.count;
  }
};

// What a stage costs, in any one unit: elements of the matrices that a token is multiplied by serve.
struct LayerCosts {
  std::vector<double> layers;  // each at least 0
  double first_stage = 0;      // in addition: embedding
  double last_stage = 0;       // in addition: output matrix
};

// Cuts the layers into `num_stages` contiguous ranges, none empty, such that the dearest stage is as cheap as
// can be (exact, by dynamic programming); among equals, the earlier stages get fewer layers.
// INVALID_ARGUMENT: no stages, or more stages than layers.
absl::StatusOr<std::vector<LayerRange>> PlaceLayers(const LayerCosts& costs, uint32_t num_stages);

// The ranges for layer counts that the user chose. INVALID_ARGUMENT: their number or their sum is not right,
// or one is 0.
absl::StatusOr<std::vector<LayerRange>> PlaceByCounts(const std::vector<int64_t>& counts, uint32_t num_layers,
                                                      uint32_t num_stages);

}  // namespace millrace
