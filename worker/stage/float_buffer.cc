#include "worker/stage/float_buffer.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

using Shape = std::initializer_list<uint64_t>;

std::optional<uint64_t> BytesOf(Shape shape) {
  uint64_t bytes = sizeof(float);
  bool overflow = false;
  for (uint64_t extent : shape) overflow |= __builtin_mul_overflow(bytes, extent, &bytes);
  overflow |= bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (overflow) return std::nullopt;
  return bytes;
}

absl::Status NoMemory(absl::string_view what, Shape shape) {
  return absl::ResourceExhaustedError(absl::StrCat(what, ": no memory for ", absl::StrJoin(shape, " x "),
                                                   " floats; use fewer rows or a shorter context"));
}

}  // namespace

absl::StatusOr<FloatBuffer> FloatBuffer::Allocate(absl::string_view what, Shape shape) {
  constexpr uint64_t kAlignment = 64;
  const std::optional<uint64_t> bytes = BytesOf(shape);
  uint8_t* memory = nullptr;
  if (bytes.has_value()) {
    const uint64_t rounded = (*bytes / kAlignment + 1) * kAlignment;
    memory = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, rounded));
  }
  if (memory == nullptr) return NoMemory(what, shape);
  // Touches the pages, so that the first microbatch does not.
  std::memset(memory, 0, *bytes);
  return FloatBuffer(DeviceMemory(memory, *bytes, [](uint8_t* data) { std::free(data); }), *bytes);
}

absl::StatusOr<FloatBuffer> FloatBuffer::Allocate(Device& device, absl::string_view what, Shape shape) {
  if (device.on_host()) return Allocate(what, shape);
  const std::optional<uint64_t> bytes = BytesOf(shape);
  if (!bytes.has_value()) return NoMemory(what, shape);
  ASSIGN_OR_RETURN(DeviceMemory memory, device.Allocate(what, *bytes));
  return FloatBuffer(std::move(memory), *bytes);
}

absl::StatusOr<FloatBuffer> FloatBuffer::AllocateStaging(Device& device, absl::string_view what,
                                                         Shape shape) {
  if (device.on_host()) return Allocate(what, shape);
  const std::optional<uint64_t> bytes = BytesOf(shape);
  if (!bytes.has_value()) return NoMemory(what, shape);
  ASSIGN_OR_RETURN(DeviceMemory memory, device.AllocateStaging(what, *bytes));
  return FloatBuffer(std::move(memory), *bytes);
}

}  // namespace millrace
