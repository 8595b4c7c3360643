#include "common/transport/numeric_messages.h"

namespace millrace {

v1::ActivationType ToWire(ActivationType type) {
  return type == ActivationType::kInt8 ? v1::ACTIVATION_TYPE_INT8 : v1::ACTIVATION_TYPE_F32;
}

v1::KvType ToWire(KvType type) {
  switch (type) {
    case KvType::kF16:
      return v1::KV_TYPE_F16;
    case KvType::kI8:
      return v1::KV_TYPE_INT8;
    case KvType::kF32:
      break;
  }
  return v1::KV_TYPE_F32;
}

std::optional<ActivationType> FromWire(v1::ActivationType type) {
  if (type == v1::ACTIVATION_TYPE_F32) return ActivationType::kF32;
  if (type == v1::ACTIVATION_TYPE_INT8) return ActivationType::kInt8;
  return std::nullopt;
}

std::optional<KvType> FromWire(v1::KvType type) {
  if (type == v1::KV_TYPE_F32) return KvType::kF32;
  if (type == v1::KV_TYPE_F16) return KvType::kF16;
  if (type == v1::KV_TYPE_INT8) return KvType::kI8;
  return std::nullopt;
}

}  // namespace millrace
