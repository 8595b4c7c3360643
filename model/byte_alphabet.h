// The alphabet in which byte-level BPE vocabularies spell bytes: printable Latin-1 characters stand for
// themselves, the other 68 bytes, in ascending order, for U+0100, U+0101, ... (Radford et al., "Language
// Models are Unsupervised Multitask Learners", 2019, released encoder).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace {

// The spelling (one character in UTF-8) of each byte.
const std::array<std::string, 256>& ByteSpellings();

// The bytes that `text` spells; nothing if a character is outside the alphabet.
std::optional<std::string> BytesOfSpelling(absl::string_view text);

}  // namespace millrace
