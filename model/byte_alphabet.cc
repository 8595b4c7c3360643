#include "model/byte_alphabet.h"

#include <cstddef>

#include "model/utf8.h"

namespace millrace {
namespace {

constexpr uint32_t kFirstUnprintable = 0x100;
constexpr uint32_t kAlphabetEnd = kFirstUnprintable + 68;

bool StandsForItself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

struct Alphabet {
  std::array<std::string, 256> spellings;
  std::array<int, kAlphabetEnd> byte_of;  // by code point; -1: none

  Alphabet() {
    byte_of.fill(-1);
    uint32_t next = kFirstUnprintable;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t code_point = StandsForItself(byte) ? byte : next++;
      byte_of[code_point] = static_cast<int>(byte);
      if (code_point < 0x80) {
        spellings[byte] = std::string(1, static_cast<char>(code_point));
      } else {
        spellings[byte] = {static_cast<char>(0xC0 | (code_point >> 6)),
                           static_cast<char>(0x80 | (code_point & 0x3F))};
      }
    }
  }
};

const Alphabet& GetAlphabet() {
  static const Alphabet& alphabet = *new Alphabet;
  return alphabet;
}

}  // namespace

const std::array<std::string, 256>& ByteSpellings() {
  return GetAlphabet().spellings;
}

std::optional<std::string> BytesOfSpelling(absl::string_view text) {
  const Alphabet& alphabet = GetAlphabet();
  std::string bytes;
  bytes.reserve(text.size());
  while (!text.empty()) {
    const Utf8Unit unit = NextUtf8(text);
    if (unit.kind != Utf8Unit::kCharacter || unit.length > 2) return std::nullopt;
    const uint32_t first = static_cast<uint8_t>(text[0]);
    const uint32_t code_point =
        unit.length == 1 ? first : ((first & 0x1F) << 6) | (static_cast<uint8_t>(text[1]) & 0x3F);
    if (code_point >= kAlphabetEnd || alphabet.byte_of[code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(alphabet.byte_of[code_point]));
    text.remove_prefix(unit.length);
  }
  return bytes;
}

}  // namespace millrace
