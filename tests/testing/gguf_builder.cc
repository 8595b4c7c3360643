#include "tests/testing/gguf_builder.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "common/check.h"

namespace millrace {
namespace {

uint64_t AlignUp(uint64_t offset, uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

}  // namespace

void AppendGgufString(std::vector<uint8_t>& out, absl::string_view text) {
  AppendBytes(out, static_cast<uint64_t>(text.size()));
  out.insert(out.end(), text.begin(), text.end());
}

void GgufBuilder::AddString(absl::string_view key, absl::string_view value) {
  std::vector<uint8_t> payload;
  AppendGgufString(payload, value);
  AddRaw(key, static_cast<uint32_t>(GgufType::kString), payload);
}

void GgufBuilder::AddStrings(absl::string_view key, absl::Span<const std::string> values) {
  std::vector<uint8_t> payload;
  AppendBytes(payload, static_cast<uint32_t>(GgufType::kString));
  AppendBytes(payload, static_cast<uint64_t>(values.size()));
  for (const std::string& value : values) AppendGgufString(payload, value);
  AddRaw(key, static_cast<uint32_t>(GgufType::kArray), payload);
}

void GgufBuilder::AddRaw(absl::string_view key, uint32_t type, absl::Span<const uint8_t> payload) {
  pairs_.push_back({std::string(key), type, std::vector<uint8_t>(payload.begin(), payload.end())});
}

bool GgufBuilder::Remove(absl::string_view key) {
  return std::erase_if(pairs_, [&](const Pair& pair) { return pair.key == key; }) > 0;
}

bool GgufBuilder::RemoveTensor(absl::string_view name) {
  return std::erase_if(tensors_, [&](const GgufTensorSpec& tensor) { return tensor.name == name; }) > 0;
}

GgufTensorSpec* GgufBuilder::FindTensor(absl::string_view name) {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(),
                                  [&](const GgufTensorSpec& tensor) { return tensor.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

std::vector<uint8_t> GgufBuilder::Build() const {
  std::vector<uint8_t> out;
  for (const char c : {'G', 'G', 'U', 'F'}) AppendBytes(out, c);
  AppendBytes(out, version_);
  AppendBytes(out, tensor_count_.value_or(tensors_.size()));
  AppendBytes(out, metadata_count_.value_or(pairs_.size()));
  for (const Pair& pair : pairs_) {
    AppendGgufString(out, pair.key);
    AppendBytes(out, pair.type);
    out.insert(out.end(), pair.payload.begin(), pair.payload.end());
  }
  std::vector<uint64_t> places;  // from the start of the data section
  uint64_t next = 0;
  for (const GgufTensorSpec& tensor : tensors_) {
    AppendGgufString(out, tensor.name);
    AppendBytes(out, static_cast<uint32_t>(tensor.shape.size()));
    for (const uint64_t length : tensor.shape) AppendBytes(out, length);
    AppendBytes(out, tensor.type);
    places.push_back(next);
    AppendBytes(out, tensor.offset.value_or(next));
    next = AlignUp(next + tensor.bytes.size(), alignment_);
  }
  const uint64_t data_begin = AlignUp(out.size(), alignment_);
  for (size_t i = 0; i < tensors_.size(); ++i) {
    out.resize(data_begin + places[i], 0);
    out.insert(out.end(), tensors_[i].bytes.begin(), tensors_[i].bytes.end());
  }
  return out;
}

ScopedTempFile::ScopedTempFile(absl::Span<const uint8_t> bytes)
    : path_(testing::TempDir() + "/millrace-XXXXXX") {
  const int fd = mkstemp(path_.data());
  MILLRACE_CHECK(fd >= 0);
  FILE* file = fdopen(fd, "wb");
  MILLRACE_CHECK(file != nullptr);
  MILLRACE_CHECK(std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
  MILLRACE_CHECK(std::fclose(file) == 0);
}

ScopedTempFile::~ScopedTempFile() {
  unlink(path_.c_str());
}

}  // namespace millrace
