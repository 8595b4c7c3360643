#include "model/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/byte_alphabet.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Letters only, whose spelling is the letter itself.
struct Words {
  std::deque<std::string> bytes;
  std::vector<MergeableToken> tokens;

  explicit Words(const std::vector<std::string>& words) {
    for (const std::string& word : words) {
      bytes.push_back(word);
      tokens.push_back({static_cast<TokenId>(tokens.size()), bytes.back()});
    }
  }
};

std::vector<TokenId> Encode(const BytePairEncoder& encoder, absl::string_view piece) {
  std::vector<TokenId> ids;
  encoder.Encode(piece, &ids);
  return ids;
}

BytePairEncoder MustCreate(const Words& words, const std::vector<std::string>& merges,
                           bool ignore_merges = false) {
  auto encoder = BytePairEncoder::Create(words.tokens, merges, ignore_merges);
  EXPECT_TRUE(encoder.ok()) << encoder.status();
  return *std::move(encoder);
}

TEST(BytePairEncoderTest, MergesTheLowestRankFirst) {
  const Words words({"a", "b", "c", "ab", "bc"});
  EXPECT_THAT(Encode(MustCreate(words, {"b c", "a b"}), "abc"), ElementsAre(0, 4));
  EXPECT_THAT(Encode(MustCreate(words, {"a b", "b c"}), "abc"), ElementsAre(3, 2));
}

TEST(BytePairEncoderTest, MergesTheLeftmostOfEqualRank) {
  const Words words({"a", "aa"});
  EXPECT_THAT(Encode(MustCreate(words, {"a a"}), "aaaaa"), ElementsAre(1, 1, 0));
}

TEST(BytePairEncoderTest, AWholePieceWinsOnlyIfMergesAreIgnored) {
  const Words words({"a", "b", "c", "bc", "abc"});
  EXPECT_THAT(Encode(MustCreate(words, {"b c"}), "abc"), ElementsAre(0, 3));
  EXPECT_THAT(Encode(MustCreate(words, {"b c"}, true), "abc"), ElementsAre(4));
}

TEST(BytePairEncoderTest, GoesThroughMergesThatAreNoTokens) {
  const Words words({"a", "b", "c", "abc"});
  const BytePairEncoder encoder = MustCreate(words, {"a b", "ab c"});
  EXPECT_THAT(Encode(encoder, "abc"), ElementsAre(3));
  EXPECT_THAT(Encode(encoder, "abb"), ElementsAre(0, 1, 1));  // "ab" has no token: bytes
}

TEST(BytePairEncoderTest, LeavesOutBytesWithoutTokenBeforeMerging) {
  const Words words({"a", "b", "ab"});
  const BytePairEncoder encoder = MustCreate(words, {"a b"});
  EXPECT_FALSE(encoder.HasByte('x'));
  EXPECT_THAT(Encode(encoder, "axb"), ElementsAre(2));
  EXPECT_THAT(Encode(encoder, "x"), IsEmpty());
}

TEST(BytePairEncoderTest, RefusesMalformedMerges) {
  const Words words({"a", "b"});
  for (const char* merge : {"ab", "", " ", "a ", " b", "a b c", "a \xFF", "\u20AC b"}) {
    const auto encoder = BytePairEncoder::Create(words.tokens, {"a b", merge}, false);
    EXPECT_EQ(encoder.status().code(), absl::StatusCode::kInvalidArgument) << merge;
    EXPECT_THAT(std::string(encoder.status().message()), HasSubstr("merge 1 ")) << merge;
  }
}

// The definition, step by step: of all neighbours, the pair of lowest rank, the leftmost of these.
std::vector<std::string> EncodeByDefinition(const std::vector<std::string>& merges,
                                            const std::string& piece) {
  std::map<std::string, size_t> ranks;
  for (size_t i = 0; i < merges.size(); ++i) ranks.emplace(merges[i], i);
  std::vector<std::string> parts;
  for (char c : piece) parts.emplace_back(1, c);
  while (true) {
    size_t best_rank = std::numeric_limits<size_t>::max(), best = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto rank = ranks.find(parts[i] + " " + parts[i + 1]);
      if (rank != ranks.end() && rank->second < best_rank) best_rank = rank->second, best = i;
    }
    if (best_rank == std::numeric_limits<size_t>::max()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + best + 1);
  }
}

// Random merges in random order, so that results may have lower ranks than their parts, too.
TEST(BytePairEncoderTest, AgreesWithTheDefinitionOnRandomMergesShortAndLong) {
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> vocabulary = {"a", "b", "c"};
    std::vector<std::string> merges;
    for (int i = 0; i < 12; ++i) {
      const std::string left = vocabulary[random() % vocabulary.size()];
      const std::string right = vocabulary[random() % vocabulary.size()];
      if (std::find(vocabulary.begin(), vocabulary.end(), left + right) == vocabulary.end()) {
        vocabulary.push_back(left + right);
      }
      merges.push_back(left + " " + right);
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const Words words(vocabulary);
    const BytePairEncoder encoder = MustCreate(words, merges);
    for (size_t length : {1, 5, 20, 32, 33, 60, 300}) {
      std::string piece;
      while (piece.size() < length) piece.push_back("abc"[random() % 3]);
      std::vector<std::string> parts;
      for (TokenId id : Encode(encoder, piece)) parts.push_back(vocabulary[id]);
      ASSERT_EQ(parts, EncodeByDefinition(merges, piece)) << piece;
    }
  }
}

}  // namespace
}  // namespace millrace
