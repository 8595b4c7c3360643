// Rotary position embedding, rotating neighbouring pairs (2i, 2i+1), as GGUF files of the llama architecture
// store their query and key weights for. Su et al., arXiv 2104.09864.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::kernels {

struct RopeArgs {
  float* x = nullptr;                   // [rows, heads, head_size], rotated in place
  const uint32_t* positions = nullptr;  // [rows]
  size_t rows = 0;
  size_t heads = 0;
  size_t head_size = 0;
  size_t rope_dims = 0;  // even, <= head_size
  const float* cos_sin =
      nullptr;  // [max position + 1, rope_dims / 2, 2]: cosine, sine; made once by the stage
};

}  // namespace millrace::kernels
