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
    case WeightType::kQ5_0:
      return kBlockElements;
    case WeightType::kQ4_K:
    case WeightType::kQ5_K:
    case WeightType::kQ6_K:
      return kSuperBlockElements;
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
    case WeightType::kQ5_0:
      return kQ5_0Bytes;
    case WeightType::kQ4_K:
      return kQ4_KBytes;
    case WeightType::kQ5_K:
      return kQ5_KBytes;
    case WeightType::kQ6_K:
      return kQ6_KBytes;
  }
  return 0;
}

}  // namespace millrace::kernels
