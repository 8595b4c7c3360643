// A GGUF v3 file, mapped into memory and checked: every count, length, offset and size is compared with the
// file before use, so a hostile or truncated file gives a status and nothing else. Format:
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace {

// How the elements of a tensor are stored. Values are those of the file format.
enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

// Elements in one block of the type and bytes of that block; F32 is {1, 4}, Q4_1 is {32, 20}, Q4_K is {256,
// 144}.
struct TensorTypeLayout {
  uint32_t elements;
  uint32_t bytes;
};
TensorTypeLayout LayoutOf(TensorType type);
absl::string_view NameOf(TensorType type);

struct TensorInfo {
  std::string name;
  TensorType type;
  std::vector<uint64_t> shape;      // fastest-varying first, as in the file: a matrix is {columns, rows}
  absl::Span<const uint8_t> bytes;  // in the mapping; lives as long as the GgufFile
};

// Metadata arrays are homogeneous; integers of any width become int64_t / uint64_t, floats double.
using GgufArray = std::variant<std::vector<int64_t>, std::vector<uint64_t>, std::vector<double>,
                               std::vector<bool>, std::vector<absl::string_view>>;
using GgufValue = std::variant<int64_t, uint64_t, double, bool, absl::string_view, GgufArray>;

// Immutable after Open. Thread: any.
//
// The file must not be changed while a GgufFile has it open: a new model goes to a new file that is renamed
// over the old one (which stays mapped). Open refuses a file that changes while it is parsed; reading a file
// that was cut short later raises SIGBUS, which no check here can prevent.
class GgufFile {
 public:
  // Errors: NOT_FOUND (no such file), INVALID_ARGUMENT (not GGUF v3, malformed, unknown tensor type, ...; the
  // message names the file, what was read at which byte offset, and the limit), PERMISSION_DENIED.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  // The same over bytes the caller keeps alive; `name` stands for the path in messages. For tests and
  // fuzzing. Tensors are as well aligned as `bytes` is: kernels want at least 8.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(absl::Span<const uint8_t> bytes, std::string name);

  ~GgufFile();

  const std::string& path() const;
  uint64_t size_bytes() const;
  uint64_t header_bytes() const;  // from the first byte to the end of the last tensor description
  absl::Span<const uint8_t> bytes() const;

  const GgufValue* Find(absl::string_view key) const;  // null if absent

  // Typed access. Missing key: NOT_FOUND; another type or out of range: INVALID_ARGUMENT; both name file and
  // key.
  absl::StatusOr<uint64_t> GetUint(absl::string_view key) const;
  absl::StatusOr<double> GetFloat(absl::string_view key) const;
  absl::StatusOr<bool> GetBool(absl::string_view key) const;
  absl::StatusOr<absl::string_view> GetString(absl::string_view key) const;
  absl::StatusOr<absl::Span<const absl::string_view>> GetStrings(absl::string_view key) const;

  const std::vector<TensorInfo>& tensors() const;
  const TensorInfo* FindTensor(absl::string_view name) const;  // null if absent

  // Identity: hex SHA-256 over file size, header (all metadata and tensor descriptions) and a 4 KiB sample
  // from the start of each tensor. Equal files have equal fingerprints; cost does not grow with tensor sizes.
  std::string Fingerprint() const;

  // Says that these bytes of the file, if it is mapped, will not be read soon: the process gives their pages
  // back. Reading them later is slower, not wrong.
  void Release(absl::Span<const uint8_t> bytes) const;

 private:
  struct Contents;
  explicit GgufFile(std::unique_ptr<Contents> contents);
  absl::StatusOr<const GgufValue*> FindOrError(absl::string_view key) const;
  absl::Status TypeError(absl::string_view key, const GgufValue& value, absl::string_view wanted) const;
  std::unique_ptr<Contents> contents_;
};

}  // namespace millrace
