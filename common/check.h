// CHECK: for our own broken invariants only, never for what a client, peer, file or device did.
#pragma once

namespace millrace::internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);
}  // namespace millrace::internal

#define MILLRACE_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::millrace::internal::CheckFailed(__FILE__, __LINE__, #condition))
