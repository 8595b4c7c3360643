// One element of the KV cache at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/paged_attention.h"

namespace millrace::kernels::reference {

// `at` counts elements from `blocks`.
float LoadKvElement(KvType type, const uint8_t* blocks, size_t at);
// kI8: `scale` as RoundingScale gave it; otherwise not used.
void StoreKvElement(KvType type, uint8_t* blocks, size_t at, float value, float scale);
// What kI8 divides these `count` elements by, or NaN (see KvType).
float RoundingScale(const float* x, size_t count);

}  // namespace millrace::kernels::reference
