// Time of one call, as the kernel benchmark takes it.
#pragma once

#include <functional>

namespace millrace::kernels {

// Seconds of processor time that one call takes on the calling thread: other programs on a shared machine
// count less than on the wall clock. The mean of as many calls as last for `least` seconds, after one that
// is not counted.
double Seconds(double least, const std::function<void()>& call);

// The same on the wall clock, for calls that use several threads.
double WallSeconds(double least, const std::function<void()>& call);

}  // namespace millrace::kernels
