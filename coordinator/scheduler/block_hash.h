// Names of KV blocks by what is in them: equal names, equal tokens from the first position on, equal salt.
//
// A full block's name is SipHash-2-4 with 128 bits of output (J.-P. Aumasson, D. J. Bernstein, "SipHash: a
// fast short-input PRF", INDOCRYPT 2012) over the name of the block before it and its own token ids; the
// first one follows a name made of the salt. Tokens are not compared on a hit. Who sends prompts knows
// neither the key, which a server draws when it starts, nor any name; to such a one the function is a random
// one, and names of n different blocks collide by chance alone: n^2 / 2^129, which is 2^-69 for 2^30 blocks.
#pragma once

#include <cstdint>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/ids.h"

namespace millrace {

struct BlockHash {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const BlockHash& a, const BlockHash& b) {
    return a.low == b.low && a.high == b.high;
  }
  template <typename H>
  friend H AbslHashValue(H h, const BlockHash& hash) {
    return H::combine(std::move(h), hash.low);
  }
};

// Secret, of 128 random bits.
struct BlockHashKey {
  uint64_t low = 0;
  uint64_t high = 0;
};

// What the first block of a sequence follows.
BlockHash HashSalt(const BlockHashKey& key, absl::string_view salt);

// A full block with these tokens, after the block named `parent`.
BlockHash HashBlock(const BlockHashKey& key, const BlockHash& parent, absl::Span<const TokenId> tokens);

// SipHash-2-4, 128 bits, of `bytes`.
BlockHash SipHash128(const BlockHashKey& key, absl::Span<const uint8_t> bytes);

}  // namespace millrace
