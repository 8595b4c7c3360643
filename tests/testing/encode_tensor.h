// Float32 to the tensor types of GGUF, for models made in tests. It shares nothing with what decodes them.
#pragma once

#include <cstdint>
#include <vector>

#include "model/gguf_file.h"

namespace millrace {

// Elements of a tensor, rounded to the type and laid out as in a file. REQUIRES: a whole number of blocks.
std::vector<uint8_t> EncodeTensor(TensorType type, const std::vector<float>& values);

}  // namespace millrace
