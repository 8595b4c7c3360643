// How keys and values are kept in the KV cache.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace millrace {

// kI8: rounded to 8 bits, with one float scale for the keys and one for the values of each position and KV
// head.
enum class KvType { kF32, kF16, kI8 };

// Bytes that the keys, or the values, of one position take in one KV head.
uint64_t KvHeadBytes(KvType type, uint32_t head_size);

// "f32", "f16" or "int8", and back; nothing for any other name.
absl::string_view KvTypeName(KvType type);
std::optional<KvType> ParseKvType(absl::string_view name);

}  // namespace millrace
