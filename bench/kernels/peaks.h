// What the machine can do, for what the kernels do to be held against.
#pragma once

#include <string>

namespace millrace::kernels {

// One core, independent chains of fused multiply-adds in registers. Of "portable": 0, as nothing is known.
double FmaPeakGflops(const std::string& isa, double least_seconds);

// One core, chains of the instructions that multiply unsigned by signed bytes and add: operations are
// multiplications and additions. Of "portable": 0.
double Int8PeakGops(const std::string& isa, double least_seconds);

// Reading far more than the caches hold, prefetched, on so many threads together.
double StreamGigabytesPerSecond(int threads, double least_seconds);

}  // namespace millrace::kernels
