#include "bench/kernels/timing.h"

#include <time.h>

namespace millrace::kernels {
namespace {

double Now(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double Mean(clockid_t clock, double least, const std::function<void()>& call) {
  call();
  const double start = Now(clock);
  int calls = 0;
  double elapsed = 0;
  do {
    call();
    ++calls;
    elapsed = Now(clock) - start;
  } while (elapsed < least);
  return elapsed / calls;
}

}  // namespace

double Seconds(double least, const std::function<void()>& call) {
  return Mean(CLOCK_THREAD_CPUTIME_ID, least, call);
}

double WallSeconds(double least, const std::function<void()>& call) {
  return Mean(CLOCK_MONOTONIC, least, call);
}

}  // namespace millrace::kernels
