#include "worker/stage/float_buffer.h"

#include <cstring>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace millrace {

absl::StatusOr<FloatBuffer> FloatBuffer::Allocate(absl::string_view what,
                                                  std::initializer_list<uint64_t> shape) {
  constexpr uint64_t kAlignment = 64;
  uint64_t bytes = sizeof(float);
  bool overflow = false;
  for (uint64_t extent : shape) overflow |= __builtin_mul_overflow(bytes, extent, &bytes);
  overflow |= bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  float* memory = nullptr;
  if (!overflow) {
    const uint64_t rounded = (bytes / kAlignment + 1) * kAlignment;
    memory = static_cast<float*>(std::aligned_alloc(kAlignment, rounded));
  }
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(what, ": no memory for ", absl::StrJoin(shape, " x "),
                                                     " floats; use fewer rows or a shorter context"));
  }
  // Touches the pages, so that the first microbatch does not.
  std::memset(memory, 0, bytes);
  return FloatBuffer(memory, bytes / sizeof(float));
}

}  // namespace millrace
