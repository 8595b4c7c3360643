// A model file cut into chunks, so that whoever lacks it can get the parts that it needs, and see of each
// that it is whole.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/gguf_file.h"
#include "model/sha256.h"

namespace millrace {

struct ByteRange {
  uint64_t offset = 0;
  uint64_t size = 0;
  bool operator==(const ByteRange&) const = default;
};

// A tensor is cut from its own first byte on, so that no chunk holds bytes of two, and a stage gets nothing
// of its neighbours' tensors.
inline constexpr uint32_t kMaxChunkBytes = uint32_t{1} << 20;
// 4 TiB of whole chunks.
inline constexpr size_t kMaxModelChunks = size_t{1} << 22;

struct ModelChunk {
  uint64_t offset = 0;
  uint32_t size = 0;  // 1 to kMaxChunkBytes
  Sha256Digest sha256 = {};
};

// What there is to get. Padding between tensors is in no chunk: nobody reads it.
struct ModelManifest {
  std::string fingerprint;  // GgufFile::Fingerprint
  uint64_t file_bytes = 0;
  uint32_t header_chunks = 0;      // the first ones: from byte 0 to the last tensor description
  std::vector<ModelChunk> chunks;  // by rising offset, disjoint
};

// Reads the whole file once, on `threads` threads, the caller's among them. `on_turn`, if given, is called on
// that one after each of its chunks, with the bytes that all have hashed. CANCELLED: it returned false.
absl::StatusOr<ModelManifest> MakeManifest(const GgufFile& file, int threads,
                                           const std::function<bool(uint64_t hashed)>& on_turn = nullptr);

// Hex SHA-256 over everything in it. Whoever knows it can trust a manifest from anywhere, and with that every
// chunk.
std::string ManifestDigest(const ModelManifest& manifest);

// Of a manifest from outside. INVALID_ARGUMENT: its chunks overlap, lie outside of the file or are too large,
// or those of the header leave a gap.
absl::Status CheckManifest(const ModelManifest& manifest);

// The chunks that hold any byte of the ranges, rising, each once. REQUIRES: CheckManifest was OK.
std::vector<uint32_t> ChunksOf(const ModelManifest& manifest, absl::Span<const ByteRange> ranges);

uint64_t BytesOf(const ModelManifest& manifest, absl::Span<const uint32_t> chunks);

// Where `part`, some bytes of the file's, lies in it.
ByteRange RangeInFile(const GgufFile& file, absl::Span<const uint8_t> part);

}  // namespace millrace
