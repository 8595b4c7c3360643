// How a GGUF header is read: one checked step after another.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/status_macros.h"
#include "model/gguf_parser.h"

namespace millrace {

static_assert(std::endian::native == std::endian::little, "GGUF files are read without swapping bytes");

// Names from a file may hold anything and be long; a message stays one readable line.
inline std::string PrintableName(absl::string_view text) {
  constexpr size_t kShown = 100;
  std::string shown = absl::CHexEscape(text.substr(0, kShown));
  if (text.size() > kShown) absl::StrAppend(&shown, "...");
  return shown;
}

// Reads a GGUF header front to back; every read is checked against the bytes that are left, and errors say
// what was read, where and of which key or tensor. Views into `image` and `name` outlive it. Thread: one.
class GgufCursor {
 public:
  GgufCursor(absl::Span<const uint8_t> image, absl::string_view name)
      : data_(image.data()),
        end_(std::min<uint64_t>(image.size(), kMaxGgufHeaderBytes)),
        file_bytes_(image.size()),
        name_(name) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return end_ - offset_; }

  // What is being read, for messages; both outlive their use.
  void SetPlace(absl::string_view kind, absl::string_view item) {
    place_kind_ = kind;
    place_item_ = item;
  }

  template <typename T>
  absl::StatusOr<T> Read(absl::string_view what) {
    if (remaining() < sizeof(T)) return Short(sizeof(T), what);
    T value;
    std::memcpy(&value, data_ + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  absl::StatusOr<absl::string_view> ReadString(absl::string_view what, uint64_t max_bytes) {
    ASSIGN_OR_RETURN(const uint64_t size, Read<uint64_t>(what));
    if (size > max_bytes) {
      return Error(absl::StrCat("length of ", what, " at byte ", offset_ - sizeof(size), " is ", size,
                                ", the limit is ", max_bytes));
    }
    if (size > remaining()) return Short(size, what);
    const absl::string_view text(reinterpret_cast<const char*>(data_ + offset_), size);
    offset_ += size;
    return text;
  }

  absl::Status Error(absl::string_view message) const {
    std::string text = absl::StrCat(name_, ": ");
    if (!place_kind_.empty()) absl::StrAppend(&text, place_kind_, " '", PrintableName(place_item_), "': ");
    return absl::InvalidArgumentError(absl::StrCat(text, message));
  }

  absl::Status Short(uint64_t wanted, absl::string_view what) const {
    if (end_ < file_bytes_) {
      return Error(absl::StrCat(what, " at byte ", offset_, " wants ", wanted, " bytes, past the limit of ",
                                kMaxGgufHeaderBytes, " bytes for a header"));
    }
    return Error(absl::StrCat(what, " at byte ", offset_, " wants ", wanted,
                              " bytes, but the file ends at byte ", file_bytes_,
                              "; it is truncated or damaged: fetch or convert it again"));
  }

 private:
  const uint8_t* data_;
  uint64_t end_;
  uint64_t file_bytes_;
  uint64_t offset_ = 0;
  absl::string_view name_;
  absl::string_view place_kind_;
  absl::string_view place_item_;
};

}  // namespace millrace
