#include "model/utf8.h"

#include <cstdint>

namespace millrace {
namespace {

// What a lead byte asks for: the number of bytes, and the range of the second one (the others: 80..BF).
struct LeadByte {
  size_t length;  // 0: no lead byte
  uint8_t second_min = 0x80;
  uint8_t second_max = 0xBF;
};

LeadByte Classify(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

}  // namespace

Utf8Unit NextUtf8(absl::string_view bytes) {
  const LeadByte lead = Classify(static_cast<uint8_t>(bytes[0]));
  if (lead.length == 0) return {Utf8Unit::kInvalid, 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {Utf8Unit::kIncomplete, i};
    const uint8_t byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t min = i == 1 ? lead.second_min : 0x80;
    const uint8_t max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return {Utf8Unit::kInvalid, i};
  }
  return {Utf8Unit::kCharacter, lead.length};
}

size_t ValidUtf8Prefix(absl::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    if (static_cast<uint8_t>(bytes[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Unit unit = NextUtf8(bytes.substr(at));
    if (unit.kind != Utf8Unit::kCharacter) break;
    at += unit.length;
  }
  return at;
}

std::string ReplaceInvalidUtf8(absl::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const size_t valid = ValidUtf8Prefix(bytes);
    text.append(bytes.data(), valid);
    bytes.remove_prefix(valid);
    if (bytes.empty()) break;
    text.append(kReplacementCharacter.data(), kReplacementCharacter.size());
    bytes.remove_prefix(NextUtf8(bytes).length);
  }
  return text;
}

}  // namespace millrace
