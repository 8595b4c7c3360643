#include "kernels/weights.h"

#include "kernels/block_layout.h"

namespace millrace::kernels {

size_t WeightBlockElements(WeightType type) {
  switch (type) {
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      return 1;
    case WeightType::kQ8_0:
    case WeightType::kQ4_0:
    case WeightType::kQ4_1:
      return kBlockElements;
  }
  return 0;
}

size_t WeightBlockBytes(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return sizeof(float);
    case WeightType::kF16:
    case WeightType::kBF16:
      return kHalfBytes;
    case WeightType::kQ8_0:
      return kQ8_0Bytes;
    case WeightType::kQ4_0:
      return kQ4_0Bytes;
    case WeightType::kQ4_1:
      return kQ4_1Bytes;
  }
  return 0;
}

}  // namespace millrace::kernels
