#include "model/utf8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "model/byte_alphabet.h"

namespace millrace {
namespace {

std::string EncodeCodePoint(uint32_t c) {
  if (c < 0x80) return {static_cast<char>(c)};
  const auto tail = [c](int shift) { return static_cast<char>(0x80 | ((c >> shift) & 0x3F)); };
  if (c < 0x800) return {static_cast<char>(0xC0 | (c >> 6)), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | (c >> 12)), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | (c >> 18)), tail(12), tail(6), tail(0)};
}

TEST(Utf8Test, TakesEveryCharacterAndNoSurrogate) {
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    const std::string bytes = EncodeCodePoint(c);
    const bool surrogate = c >= 0xD800 && c <= 0xDFFF;
    ASSERT_EQ(ValidUtf8Prefix(bytes), surrogate ? 0 : bytes.size()) << std::hex << c;
  }
  EXPECT_EQ(ValidUtf8Prefix(EncodeCodePoint(0x110000)), 0u);
}

TEST(Utf8Test, RefusesOverlongForms) {
  for (const char* bytes : {"\xC0\xAF", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF"}) {
    EXPECT_EQ(NextUtf8(bytes).kind, Utf8Unit::kInvalid) << bytes;
  }
}

TEST(Utf8Test, EveryProperPrefixOfACharacterIsIncomplete) {
  for (uint32_t c : {0xE9u, 0x20ACu, 0xFFFDu, 0x1F600u, 0x10FFFFu}) {
    const std::string bytes = EncodeCodePoint(c);
    for (size_t n = 1; n < bytes.size(); ++n) {
      const Utf8Unit unit = NextUtf8(bytes.substr(0, n));
      EXPECT_EQ(unit.kind, Utf8Unit::kIncomplete) << std::hex << c;
      EXPECT_EQ(unit.length, n);
    }
  }
}

// The example of The Unicode Standard, table 3-11.
TEST(Utf8Test, ReplacesMaximalSubparts) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(ReplaceInvalidUtf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
  EXPECT_EQ(ReplaceInvalidUtf8("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(ReplaceInvalidUtf8("plain \xE2\x82\xAC"), "plain \xE2\x82\xAC");
}

TEST(ByteAlphabetTest, SpellsEveryByteAndReadsItBack) {
  std::string all, spelt;
  for (int byte = 0; byte < 256; ++byte) {
    all.push_back(static_cast<char>(byte));
    spelt += ByteSpellings()[byte];
  }
  EXPECT_EQ(BytesOfSpelling(spelt), all);
}

TEST(ByteAlphabetTest, KnowsTheSpellingsThatModelsUse) {
  EXPECT_EQ(ByteSpellings()[' '], "\u0120");
  EXPECT_EQ(ByteSpellings()['\n'], "\u010A");
  EXPECT_EQ(ByteSpellings()['!'], "!");
  EXPECT_EQ(ByteSpellings()[0xAD], "\u0143");
  EXPECT_EQ(ByteSpellings()[0xFF], "\u00FF");
}

TEST(ByteAlphabetTest, RefusesOtherCharacters) {
  for (const char* text : {" ", "\n", "\u00AD", "\u0144", "\u20AC", "\xC4", "a\xFF"}) {
    EXPECT_EQ(BytesOfSpelling(text), std::nullopt) << text;
  }
}

}  // namespace
}  // namespace millrace
