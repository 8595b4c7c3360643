// Which part of the model a stage is.
#pragma once

#include <cstdint>

namespace millrace {

struct StageLayout {
  uint32_t first_layer = 0;
  uint32_t num_layers = 0;
  bool first = false;  // has the embedding
  bool last = false;   // has the output norm, the output matrix and the sampler
};

}  // namespace millrace
