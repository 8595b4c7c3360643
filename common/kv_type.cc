#include "common/kv_type.h"

namespace millrace {

uint64_t KvHeadBytes(KvType type, uint32_t head_size) {
  switch (type) {
    case KvType::kF16:
      return uint64_t{2} * head_size;
    case KvType::kI8:
      return uint64_t{head_size} + sizeof(float);
    case KvType::kF32:
      break;
  }
  return uint64_t{4} * head_size;
}

absl::string_view KvTypeName(KvType type) {
  switch (type) {
    case KvType::kF16:
      return "f16";
    case KvType::kI8:
      return "int8";
    case KvType::kF32:
      break;
  }
  return "f32";
}

std::optional<KvType> ParseKvType(absl::string_view name) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kI8}) {
    if (name == KvTypeName(type)) return type;
  }
  return std::nullopt;
}

}  // namespace millrace
