#include "coordinator/scheduler/block_hash.h"

#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr BlockHashKey kKey = {1, 2};

std::string Hex(const BlockHash& hash) {
  std::string bytes;
  for (uint64_t word : {hash.low, hash.high}) {
    for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(word >> (8 * i)));
  }
  return absl::BytesToHexString(bytes);
}

// Expected values: `openssl mac -macopt hexkey:000102030405060708090a0b0c0d0e0f -macopt size:16 SIPHASH`.
TEST(BlockHashTest, IsSipHash) {
  const BlockHashKey key = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
  std::vector<uint8_t> bytes;
  for (uint8_t i = 0; i < 63; ++i) bytes.push_back(i);
  const absl::Span<const uint8_t> all(bytes);
  EXPECT_EQ(Hex(SipHash128(key, all.first(0))), "a3817f04ba25a8e66df67214c7550293");
  EXPECT_EQ(Hex(SipHash128(key, all.first(1))), "da87c1d86b99af44347659119b22fc45");
  EXPECT_EQ(Hex(SipHash128(key, all.first(3))), "9c70b60c5267a94e5f33b6b02985ed51");
  EXPECT_EQ(Hex(SipHash128(key, all.first(15))), "5493e99933b0a8117e08ec0f97cfc3d9");
  EXPECT_EQ(Hex(SipHash128(key, all)), "5150d1772f50834a503e069a973fbd7c");
}

TEST(BlockHashTest, DependsOnEverything) {
  const BlockHash root = HashSalt(kKey, "");
  const std::vector<TokenId> tokens = {1, 2, 3, 4};
  absl::flat_hash_set<std::string> names;
  const auto add = [&](const BlockHash& hash) { EXPECT_TRUE(names.insert(Hex(hash)).second); };
  add(root);
  add(HashSalt(kKey, "a"));
  add(HashSalt(kKey, absl::string_view("\0", 1)));
  add(HashSalt({1, 3}, ""));
  add(HashBlock(kKey, root, tokens));
  add(HashBlock({2, 2}, root, tokens));
  add(HashBlock(kKey, HashSalt(kKey, "a"), tokens));
  add(HashBlock(kKey, HashBlock(kKey, root, tokens), tokens));
  for (const std::vector<TokenId>& other : {std::vector<TokenId>{1, 2, 3, 5},
                                            {2, 1, 3, 4},
                                            {1, 2, 3},
                                            {1, 2, 3, 4, 0},
                                            {1, 2, 3, 4u | 1u << 31}}) {
    add(HashBlock(kKey, root, other));
  }
  EXPECT_EQ(Hex(HashBlock(kKey, root, tokens)), Hex(HashBlock(kKey, HashSalt(kKey, ""), {1, 2, 3, 4})));
}

// Whoever knew the name of a block could otherwise ask for it as a salt.
TEST(BlockHashTest, TakesNoSaltForABlock) {
  const BlockHash root = HashSalt(kKey, "");
  const TokenId token = 0x64636261;
  std::string bytes(20, '\0');
  for (int i = 0; i < 8; ++i) {
    bytes[static_cast<size_t>(i)] = static_cast<char>(root.low >> (8 * i));
    bytes[static_cast<size_t>(8 + i)] = static_cast<char>(root.high >> (8 * i));
  }
  bytes.replace(16, 4, "abcd");
  EXPECT_NE(Hex(HashSalt(kKey, bytes)), Hex(HashBlock(kKey, root, {token})));
}

}  // namespace
}  // namespace millrace
