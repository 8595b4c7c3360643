#include "model/gguf_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/gguf_parser.h"
#include "model/sha256.h"

namespace millrace {
namespace {

constexpr size_t kFingerprintSampleBytes = 4096;

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// A read-only mapping of a whole file; outlives the descriptor it was made from.
class Mapping {
 public:
  Mapping() = default;
  Mapping(void* address, size_t size) : address_(address), size_(size) {}
  ~Mapping() {
    if (address_ != nullptr) munmap(address_, size_);
  }
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(size_, other.size_);
    return *this;
  }
  absl::Span<const uint8_t> bytes() const { return {static_cast<const uint8_t*>(address_), size_}; }

 private:
  void* address_ = nullptr;
  size_t size_ = 0;
};

bool SameState(const struct stat& a, const struct stat& b) {
  return a.st_size == b.st_size && a.st_mtim.tv_sec == b.st_mtim.tv_sec &&
         a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

absl::Status ErrnoStatus(int error, absl::string_view path, absl::string_view what) {
  return absl::ErrnoToStatus(error, absl::StrCat(path, ": cannot ", what, " the model file"));
}

// `state`: what fstat says of the file.
absl::StatusOr<Mapping> MapFile(int fd, const struct stat& state, absl::string_view path) {
  if (!S_ISREG(state.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a regular file; give the path of a GGUF file"));
  }
  if (state.st_size == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the file is empty; fetch or convert the model again"));
  }
  void* address = mmap(nullptr, state.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (address == MAP_FAILED) return ErrnoStatus(errno, path, "map");
  return Mapping(address, state.st_size);
}

std::string QuotedKey(absl::string_view key) {
  return absl::StrCat("metadata key '", absl::CHexEscape(key), "'");
}

absl::string_view KindOf(const GgufValue& value) {
  constexpr absl::string_view kKinds[] = {
      "a signed integer", "an unsigned integer", "a float", "a bool", "a string", "an array"};
  static_assert(std::size(kKinds) == std::variant_size_v<GgufValue>);
  return kKinds[value.index()];
}

}  // namespace

TensorTypeLayout LayoutOf(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return {1, 4};
    case TensorType::kF16:
    case TensorType::kBF16:
      return {1, 2};
    case TensorType::kQ4_0:
      return {32, 18};
    case TensorType::kQ4_1:
      return {32, 20};
    case TensorType::kQ5_0:
      return {32, 22};
    case TensorType::kQ8_0:
      return {32, 34};
    case TensorType::kQ4_K:
      return {256, 144};
    case TensorType::kQ5_K:
      return {256, 176};
    case TensorType::kQ6_K:
      return {256, 210};
  }
  MILLRACE_CHECK(false);
}

absl::string_view NameOf(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return "F32";
    case TensorType::kF16:
      return "F16";
    case TensorType::kBF16:
      return "BF16";
    case TensorType::kQ4_0:
      return "Q4_0";
    case TensorType::kQ4_1:
      return "Q4_1";
    case TensorType::kQ5_0:
      return "Q5_0";
    case TensorType::kQ8_0:
      return "Q8_0";
    case TensorType::kQ4_K:
      return "Q4_K";
    case TensorType::kQ5_K:
      return "Q5_K";
    case TensorType::kQ6_K:
      return "Q6_K";
  }
  MILLRACE_CHECK(false);
}

struct GgufFile::Contents {
  std::string path;
  Mapping mapping;  // empty when the caller keeps the bytes
  absl::Span<const uint8_t> bytes;
  GgufContents parsed;
};

GgufFile::GgufFile(std::unique_ptr<Contents> contents) : contents_(std::move(contents)) {}
GgufFile::~GgufFile() = default;

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  // Non-blocking, so that a path that is a FIFO gives an error instead of a wait for its writer.
  const FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return ErrnoStatus(errno, path, "open");
  struct stat before = {};
  if (fstat(fd.get(), &before) != 0) return ErrnoStatus(errno, path, "examine");
  auto contents = std::make_unique<Contents>();
  contents->path = path;
  ASSIGN_OR_RETURN(contents->mapping, MapFile(fd.get(), before, path));
  contents->bytes = contents->mapping.bytes();
  ASSIGN_OR_RETURN(contents->parsed, ParseGguf(contents->bytes, path));
  struct stat after = {};
  if (fstat(fd.get(), &after) != 0) return ErrnoStatus(errno, path, "examine");
  if (!SameState(before, after)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the file changed while it was read; try again when it is complete"));
  }
  return std::unique_ptr<GgufFile>(new GgufFile(std::move(contents)));
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(absl::Span<const uint8_t> bytes, std::string name) {
  auto contents = std::make_unique<Contents>();
  contents->path = std::move(name);
  contents->bytes = bytes;
  ASSIGN_OR_RETURN(contents->parsed, ParseGguf(bytes, contents->path));
  return std::unique_ptr<GgufFile>(new GgufFile(std::move(contents)));
}

const std::string& GgufFile::path() const {
  return contents_->path;
}
uint64_t GgufFile::size_bytes() const {
  return contents_->bytes.size();
}
uint64_t GgufFile::header_bytes() const {
  return contents_->parsed.header_bytes;
}
absl::Span<const uint8_t> GgufFile::bytes() const {
  return contents_->bytes;
}

const GgufValue* GgufFile::Find(absl::string_view key) const {
  const auto found = contents_->parsed.metadata.find(key);
  return found == contents_->parsed.metadata.end() ? nullptr : &found->second;
}

absl::StatusOr<const GgufValue*> GgufFile::FindOrError(absl::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return absl::NotFoundError(absl::StrCat(path(), ": ", QuotedKey(key), " is missing"));
  return value;
}

absl::Status GgufFile::TypeError(absl::string_view key, const GgufValue& value,
                                 absl::string_view wanted) const {
  return absl::InvalidArgumentError(
      absl::StrCat(path(), ": ", QuotedKey(key), " is ", KindOf(value), ", must be ", wanted));
}

absl::StatusOr<uint64_t> GgufFile::GetUint(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, FindOrError(key));
  if (const auto* number = std::get_if<uint64_t>(value)) return *number;
  if (const auto* number = std::get_if<int64_t>(value)) {
    if (*number >= 0) return static_cast<uint64_t>(*number);
    return absl::InvalidArgumentError(
        absl::StrCat(path(), ": ", QuotedKey(key), " is ", *number, ", must not be negative"));
  }
  return TypeError(key, *value, "an unsigned integer");
}

absl::StatusOr<double> GgufFile::GetFloat(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, FindOrError(key));
  if (const auto* number = std::get_if<double>(value)) return *number;
  return TypeError(key, *value, "a float");
}

absl::StatusOr<bool> GgufFile::GetBool(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, FindOrError(key));
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  return TypeError(key, *value, "a bool");
}

absl::StatusOr<absl::string_view> GgufFile::GetString(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, FindOrError(key));
  if (const auto* text = std::get_if<absl::string_view>(value)) return *text;
  return TypeError(key, *value, "a string");
}

absl::StatusOr<absl::Span<const absl::string_view>> GgufFile::GetStrings(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, FindOrError(key));
  if (const auto* array = std::get_if<GgufArray>(value)) {
    if (const auto* texts = std::get_if<std::vector<absl::string_view>>(array))
      return absl::MakeConstSpan(*texts);
  }
  return TypeError(key, *value, "an array of strings");
}

const std::vector<TensorInfo>& GgufFile::tensors() const {
  return contents_->parsed.tensors;
}

const TensorInfo* GgufFile::FindTensor(absl::string_view name) const {
  const auto found = contents_->parsed.tensor_index.find(name);
  return found == contents_->parsed.tensor_index.end() ? nullptr : &tensors()[found->second];
}

std::string GgufFile::Fingerprint() const {
  Sha256 hash;
  const uint64_t size = size_bytes();
  hash.Add(&size, sizeof(size));
  hash.Add(contents_->bytes.data(), contents_->parsed.header_bytes);
  for (const TensorInfo& tensor : tensors()) {
    hash.Add(tensor.bytes.data(), std::min(tensor.bytes.size(), kFingerprintSampleBytes));
  }
  return HexOf(hash.Finish());
}

void GgufFile::Release(absl::Span<const uint8_t> bytes) const {
  // Memory of the caller's would lose its content.
  if (contents_->mapping.bytes().empty()) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(bytes.data()) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size()) / page * page;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace millrace
