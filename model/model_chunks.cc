#include "model/model_chunks.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace millrace {
namespace {

void CutRange(ByteRange range, std::vector<ModelChunk>& chunks) {
  for (uint64_t done = 0; done < range.size; done += kMaxChunkBytes) {
    ModelChunk chunk;
    chunk.offset = range.offset + done;
    chunk.size = static_cast<uint32_t>(std::min<uint64_t>(kMaxChunkBytes, range.size - done));
    chunks.push_back(chunk);
  }
}

// False: `on_turn` ended it.
bool HashChunks(absl::Span<const uint8_t> bytes, int threads, const std::function<bool(uint64_t)>& on_turn,
                std::vector<ModelChunk>& chunks) {
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> hashed{0};
  std::atomic<bool> go_on{true};
  const auto work = [&](const std::function<bool(uint64_t)>& turn) {
    for (size_t i = next++; i < chunks.size() && go_on; i = next++) {
      chunks[i].sha256 = Sha256Of(bytes.subspan(chunks[i].offset, chunks[i].size));
      hashed += chunks[i].size;
      if (turn && !turn(hashed)) go_on = false;
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, nullptr);
  work(on_turn);
  for (std::thread& other : others) other.join();
  return go_on;
}

absl::Status BadManifest(size_t chunk, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("manifest of the model: chunk ", chunk, " ", what));
}

}  // namespace

ByteRange RangeInFile(const GgufFile& file, absl::Span<const uint8_t> part) {
  MILLRACE_CHECK(part.data() >= file.bytes().data() &&
                 part.data() + part.size() <= file.bytes().data() + file.bytes().size());
  return {static_cast<uint64_t>(part.data() - file.bytes().data()), part.size()};
}

absl::StatusOr<ModelManifest> MakeManifest(const GgufFile& file, int threads,
                                           const std::function<bool(uint64_t)>& on_turn) {
  ModelManifest manifest;
  manifest.fingerprint = file.Fingerprint();
  manifest.file_bytes = file.size_bytes();
  CutRange({0, file.header_bytes()}, manifest.chunks);
  manifest.header_chunks = static_cast<uint32_t>(manifest.chunks.size());
  std::vector<ByteRange> tensors;
  for (const TensorInfo& tensor : file.tensors()) tensors.push_back(RangeInFile(file, tensor.bytes));
  std::sort(tensors.begin(), tensors.end(),
            [](const ByteRange& a, const ByteRange& b) { return a.offset < b.offset; });
  for (const ByteRange& tensor : tensors) CutRange(tensor, manifest.chunks);
  if (!HashChunks(file.bytes(), threads, on_turn, manifest.chunks)) {
    return absl::CancelledError("stopped while the model was hashed");
  }
  return manifest;
}

std::string ManifestDigest(const ModelManifest& manifest) {
  Sha256 hash;
  const uint64_t sizes[] = {manifest.fingerprint.size(), manifest.file_bytes, manifest.header_chunks,
                            manifest.chunks.size()};
  hash.Add(sizes, sizeof(sizes));
  hash.Add(manifest.fingerprint.data(), manifest.fingerprint.size());
  for (const ModelChunk& chunk : manifest.chunks) {
    const uint64_t place[] = {chunk.offset, chunk.size};
    hash.Add(place, sizeof(place));
    hash.Add(chunk.sha256.data(), chunk.sha256.size());
  }
  return HexOf(hash.Finish());
}

absl::Status CheckManifest(const ModelManifest& manifest) {
  if (manifest.chunks.empty() || manifest.chunks.size() > kMaxModelChunks || manifest.header_chunks == 0 ||
      manifest.header_chunks > manifest.chunks.size() ||
      manifest.file_bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat("manifest of the model: ", manifest.chunks.size(),
                                                   " chunks, ", manifest.header_chunks, " of the header, ",
                                                   manifest.file_bytes, " bytes"));
  }
  uint64_t end = 0;
  for (size_t i = 0; i < manifest.chunks.size(); ++i) {
    const ModelChunk& chunk = manifest.chunks[i];
    if (chunk.size == 0 || chunk.size > kMaxChunkBytes) {
      return BadManifest(i, absl::StrCat("has ", chunk.size, " bytes"));
    }
    if (chunk.offset < end) return BadManifest(i, "overlaps the one before");
    if (i < manifest.header_chunks && chunk.offset != end)
      return BadManifest(i, "leaves a gap in the header");
    if (chunk.offset > manifest.file_bytes || chunk.size > manifest.file_bytes - chunk.offset) {
      return BadManifest(i, "lies outside of the file");
    }
    end = chunk.offset + chunk.size;
  }
  return absl::OkStatus();
}

std::vector<uint32_t> ChunksOf(const ModelManifest& manifest, absl::Span<const ByteRange> ranges) {
  std::vector<uint32_t> chunks;
  for (const ByteRange& range : ranges) {
    auto chunk = std::partition_point(
        manifest.chunks.begin(), manifest.chunks.end(),
        [&](const ModelChunk& other) { return other.offset + other.size <= range.offset; });
    for (; chunk != manifest.chunks.end() && range.size != 0 && chunk->offset < range.offset + range.size;
         ++chunk) {
      chunks.push_back(static_cast<uint32_t>(chunk - manifest.chunks.begin()));
    }
  }
  std::sort(chunks.begin(), chunks.end());
  chunks.erase(std::unique(chunks.begin(), chunks.end()), chunks.end());
  return chunks;
}

uint64_t BytesOf(const ModelManifest& manifest, absl::Span<const uint32_t> chunks) {
  uint64_t bytes = 0;
  for (const uint32_t chunk : chunks) bytes += manifest.chunks[chunk].size;
  return bytes;
}

}  // namespace millrace
