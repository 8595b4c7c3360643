// SHA-256, as pieces come.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/types/span.h"

namespace millrace {

using Sha256Digest = std::array<uint8_t, 32>;

// Thread: one at a time.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(const void* data, size_t size);
  // Ends it: nothing may be added afterwards.
  Sha256Digest Finish();

 private:
  void* context_;  // OpenSSL's
};

Sha256Digest Sha256Of(absl::Span<const uint8_t> bytes);
std::string HexOf(const Sha256Digest& digest);

}  // namespace millrace
