#include "kernels/paged_attention.h"

namespace millrace::kernels {

size_t KvElementBytes(KvType type) {
  switch (type) {
    case KvType::kF16:
      return 2;
    case KvType::kI8:
      return 1;
    case KvType::kF32:
      break;
  }
  return 4;
}

}  // namespace millrace::kernels
