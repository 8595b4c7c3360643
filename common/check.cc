#include "common/check.h"

#include <cstdio>
#include <cstdlib>

namespace millrace::internal {

void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, condition);
  std::fflush(stderr);
  std::abort();
}

}  // namespace millrace::internal
