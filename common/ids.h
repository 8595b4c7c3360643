// Distinct types for the numbers that name things, so that one cannot be passed for another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <ostream>
#include <utility>

namespace millrace {

// A number that names one thing of kind `Tag`. Value semantics; 0 is never a valid name.
template <typename Tag>
class Id {
 public:
  constexpr Id() = default;
  constexpr explicit Id(uint64_t value) : value_(value) {}
  constexpr uint64_t value() const { return value_; }
  constexpr bool valid() const { return value_ != 0; }
  friend constexpr bool operator==(Id a, Id b) { return a.value_ == b.value_; }
  friend constexpr bool operator!=(Id a, Id b) { return a.value_ != b.value_; }
  friend constexpr bool operator<(Id a, Id b) { return a.value_ < b.value_; }
  template <typename H>
  friend H AbslHashValue(H h, Id id) {
    return H::combine(std::move(h), id.value_);
  }
  friend std::ostream& operator<<(std::ostream& out, Id id) { return out << id.value_; }

 private:
  uint64_t value_ = 0;
};

using SequenceId = Id<struct SequenceTag>;      // one request's running state
using MicrobatchId = Id<struct MicrobatchTag>;  // one trip round the ring; 1, 2, 3, ... within an epoch
using Epoch = Id<struct EpochTag>;              // the lifetime of one placement
using WorkerId = Id<struct WorkerTag>;          // one joined worker process

// Plain numbers where bulk arrays are exchanged.
using TokenId = uint32_t;
using BlockId = uint32_t;  // a page of KV cache; the same id on every stage

}  // namespace millrace

template <typename Tag>
struct std::hash<millrace::Id<Tag>> {
  size_t operator()(millrace::Id<Tag> id) const { return std::hash<uint64_t>()(id.value()); }
};
