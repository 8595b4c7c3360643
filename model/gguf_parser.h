// The parse of a GGUF v3 image into metadata and tensor descriptions; GgufFile owns the bytes and answers
// questions. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/gguf_file.h"

namespace millrace {

// Limits on what a file may claim, far above real models (a 405 B Llama: 1,138 tensors, 7 MiB of header).
// With them a hostile header costs at most a few times its own size in memory.
inline constexpr uint64_t kMaxGgufHeaderBytes = uint64_t{256} << 20;
inline constexpr uint64_t kMaxGgufMetadataPairs = 65536;
inline constexpr uint64_t kMaxGgufTensors = 65536;
inline constexpr uint64_t kMaxGgufArrayElements = uint64_t{16} << 20;  // over all arrays of a file
inline constexpr uint64_t kMaxGgufKeyBytes = 65535;
inline constexpr uint64_t kMaxGgufTensorNameBytes = 256;
inline constexpr uint64_t kMinGgufAlignment = 8;
inline constexpr uint64_t kMaxGgufAlignment = 65536;

// All views are into the image.
struct GgufContents {
  absl::flat_hash_map<absl::string_view, GgufValue> metadata;
  std::vector<TensorInfo> tensors;  // in the order of the file
  absl::flat_hash_map<absl::string_view, size_t> tensor_index;
  uint64_t header_bytes = 0;  // magic to the last tensor description, without the padding that follows
};

// `image`: the whole file. `name` is for messages. Errors: INVALID_ARGUMENT, as GgufFile::Open says.
absl::StatusOr<GgufContents> ParseGguf(absl::Span<const uint8_t> image, absl::string_view name);

}  // namespace millrace
