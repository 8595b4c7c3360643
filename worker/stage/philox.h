// Philox4x32-10, a counter-based random generator: the n-th number is a function of (key, n), with no state
// to keep or to lose. Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC'11.
#pragma once

#include <array>
#include <cstdint>

namespace millrace {

// 128 random bits for a 128-bit counter and a 64-bit key, each as 32-bit words with the lowest first.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

}  // namespace millrace
