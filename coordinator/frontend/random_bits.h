// Unpredictable numbers for seeds, request ids and keys.
#pragma once

#include <cstdint>

namespace millrace {

// 64 bits from the operating system's generator. Thread: any.
uint64_t RandomBits();

}  // namespace millrace
