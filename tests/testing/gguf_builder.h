// Writes GGUF images for tests, sound ones and, field by field, broken ones. It shares nothing with the
// parser, so that a misreading of the format there cannot hide here. A whole small model:
// tests/testing/tiny_llama.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace {

// Numbers of the file format.
enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Appends plain numbers to an image, little-endian.
template <typename T>
void AppendBytes(std::vector<uint8_t>& out, const T& value) {
  const size_t size = out.size();
  out.resize(size + sizeof(T));
  std::memcpy(out.data() + size, &value, sizeof(T));
}
void AppendGgufString(std::vector<uint8_t>& out, absl::string_view text);

struct GgufTensorSpec {
  std::string name;
  uint32_t type = 0;            // number of the format; 0 is F32
  std::vector<uint64_t> shape;  // fastest-varying first
  std::vector<uint8_t> bytes;
  std::optional<uint64_t> offset;  // written as it is; the next free aligned one if absent
};

// Thread: one. Keys and tensors come out in the order they went in.
class GgufBuilder {
 public:
  void AddUint32(absl::string_view key, uint32_t value) { AddNumber(key, GgufType::kUint32, value); }
  void AddInt32(absl::string_view key, int32_t value) { AddNumber(key, GgufType::kInt32, value); }
  void AddUint64(absl::string_view key, uint64_t value) { AddNumber(key, GgufType::kUint64, value); }
  void AddFloat32(absl::string_view key, float value) { AddNumber(key, GgufType::kFloat32, value); }
  void AddBool(absl::string_view key, bool value) {
    AddNumber(key, GgufType::kBool, static_cast<uint8_t>(value));
  }
  void AddString(absl::string_view key, absl::string_view value);
  void AddStrings(absl::string_view key, absl::Span<const std::string> values);

  // `value` is written as it is: its type must have the size that `type` has.
  template <typename T>
  void AddNumber(absl::string_view key, GgufType type, T value) {
    std::vector<uint8_t> payload;
    AppendBytes(payload, value);
    AddRaw(key, static_cast<uint32_t>(type), payload);
  }
  template <typename T>
  void AddNumbers(absl::string_view key, GgufType type, absl::Span<const T> values) {
    std::vector<uint8_t> payload;
    AppendBytes(payload, static_cast<uint32_t>(type));
    AppendBytes(payload, static_cast<uint64_t>(values.size()));
    for (const T& value : values) AppendBytes(payload, value);
    AddRaw(key, static_cast<uint32_t>(GgufType::kArray), payload);
  }

  // Any type number and any payload.
  void AddRaw(absl::string_view key, uint32_t type, absl::Span<const uint8_t> payload);

  void AddTensor(GgufTensorSpec tensor) { tensors_.push_back(std::move(tensor)); }

  // What was added before, to change or to leave out; false or null if there is none of that name.
  bool Remove(absl::string_view key);
  bool RemoveTensor(absl::string_view name);
  GgufTensorSpec* FindTensor(absl::string_view name);

  void set_version(uint32_t version) { version_ = version; }
  // Where tensors are put; says nothing in the metadata (add general.alignment for that).
  void set_alignment(uint64_t alignment) { alignment_ = alignment; }
  // The counts in the preamble, in place of the true ones.
  void set_tensor_count(uint64_t count) { tensor_count_ = count; }
  void set_metadata_count(uint64_t count) { metadata_count_ = count; }

  // The image; nothing follows the last byte of the last tensor.
  std::vector<uint8_t> Build() const;

 private:
  struct Pair {
    std::string key;
    uint32_t type;
    std::vector<uint8_t> payload;
  };
  std::vector<Pair> pairs_;
  std::vector<GgufTensorSpec> tensors_;
  uint32_t version_ = 3;
  uint64_t alignment_ = 32;
  std::optional<uint64_t> tensor_count_;
  std::optional<uint64_t> metadata_count_;
};

// A file of its own under the temporary folder of the tests, removed with this object.
class ScopedTempFile {
 public:
  explicit ScopedTempFile(absl::Span<const uint8_t> bytes);
  ~ScopedTempFile();
  ScopedTempFile(const ScopedTempFile&) = delete;
  ScopedTempFile& operator=(const ScopedTempFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace millrace
