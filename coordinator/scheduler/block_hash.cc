#include "coordinator/scheduler/block_hash.h"

#include <cstddef>
#include <cstring>

#include "absl/container/inlined_vector.h"

namespace millrace {
namespace {

uint64_t RotateLeft(uint64_t x, int bits) {
  return x << bits | x >> (64 - bits);
}

// Bytes as a little-endian number.
uint64_t LoadWord(const uint8_t* bytes, size_t count) {
  uint64_t word = 0;
  for (size_t i = 0; i < count; ++i) word |= uint64_t{bytes[i]} << (8 * i);
  return word;
}

// The state and rounds of the paper, section 2.
struct SipState {
  uint64_t v0, v1, v2, v3;

  explicit SipState(const BlockHashKey& key)
      : v0(key.low ^ 0x736f6d6570736575),
        v1(key.high ^ 0x646f72616e646f6d ^ 0xee),  // 0xee: 128 bits of output
        v2(key.low ^ 0x6c7967656e657261),
        v3(key.high ^ 0x7465646279746573) {}

  void Rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0 += v1;
      v1 = RotateLeft(v1, 13) ^ v0;
      v0 = RotateLeft(v0, 32);
      v2 += v3;
      v3 = RotateLeft(v3, 16) ^ v2;
      v0 += v3;
      v3 = RotateLeft(v3, 21) ^ v0;
      v2 += v1;
      v1 = RotateLeft(v1, 17) ^ v2;
      v2 = RotateLeft(v2, 32);
    }
  }
  void Absorb(uint64_t word) {
    v3 ^= word;
    Rounds(2);
    v0 ^= word;
  }
  uint64_t Squeeze(uint64_t tweak, uint64_t* into) {
    *into ^= tweak;
    Rounds(4);
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

}  // namespace

BlockHash SipHash128(const BlockHashKey& key, absl::Span<const uint8_t> bytes) {
  SipState state(key);
  const size_t whole = bytes.size() / 8 * 8;
  for (size_t i = 0; i < whole; i += 8) state.Absorb(LoadWord(bytes.data() + i, 8));
  state.Absorb(LoadWord(bytes.data() + whole, bytes.size() - whole) | uint64_t{bytes.size()} << 56);
  BlockHash hash;
  hash.low = state.Squeeze(0xee, &state.v2);
  hash.high = state.Squeeze(0xdd, &state.v1);
  return hash;
}

// Another key than that of blocks, so that no salt looks like a block.
BlockHash HashSalt(const BlockHashKey& key, absl::string_view salt) {
  const BlockHashKey salt_key = {~key.low, ~key.high};
  return SipHash128(salt_key, {reinterpret_cast<const uint8_t*>(salt.data()), salt.size()});
}

BlockHash HashBlock(const BlockHashKey& key, const BlockHash& parent, absl::Span<const TokenId> tokens) {
  absl::InlinedVector<uint8_t, 16 + 4 * 64> bytes(16 + 4 * tokens.size());
  std::memcpy(bytes.data(), &parent.low, 8);
  std::memcpy(bytes.data() + 8, &parent.high, 8);
  std::memcpy(bytes.data() + 16, tokens.data(), 4 * tokens.size());
  return SipHash128(key, bytes);
}

}  // namespace millrace
