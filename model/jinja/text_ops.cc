#include "model/jinja/text_ops.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace millrace::jinja {
namespace {

// The set of characters a strip removes.
class StripSet {
 public:
  explicit StripSet(const Text* characters) : blanks_(characters == nullptr) {
    if (blanks_) return;
    for (size_t p = 0; p < characters->size();) {
      Character c = DecodeCharacter(characters->bytes(), p);
      codes_.push_back(c.code);
      p += c.size;
    }
    std::sort(codes_.begin(), codes_.end());
  }
  bool Has(char32_t code) const {
    return blanks_ ? IsSpace(code) : std::binary_search(codes_.begin(), codes_.end(), code);
  }

 private:
  bool blanks_;
  std::vector<char32_t> codes_;
};

// The character that ends at `end`. REQUIRES: end > 0.
Character CharacterBefore(absl::string_view bytes, size_t end) {
  for (size_t size = 1; size <= 4 && size <= end; ++size) {
    Character c = DecodeCharacter(bytes.substr(0, end), end - size);
    if (c.size == size && (size > 1 || (static_cast<uint8_t>(bytes[end - 1]) & 0xC0) != 0x80)) return c;
  }
  return DecodeCharacter(bytes.substr(0, end), end - 1);
}

bool IsLineBreak(char32_t code) {
  return (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 || code == 0x2028 ||
         code == 0x2029;
}

// Maps every character by `form_of(code)`.
template <typename FormOf>
Text MapCharacters(const Text& text, FormOf form_of) {
  Text out;
  std::string mapped;
  for (size_t p = 0; p < text.size();) {
    Character c = DecodeCharacter(text.bytes(), p);
    mapped.clear();
    AppendCase(c.code, form_of(c.code), &mapped);
    out.Append(mapped, text.IsUntrusted(p));
    p += c.size;
  }
  return out;
}

}  // namespace

size_t FindBytes(absl::string_view text, absl::string_view part, size_t begin) {
  if (begin > text.size()) return absl::string_view::npos;
  const char* from = text.data() + begin;
  const size_t left = text.size() - begin;
  // Texts are split and replaced at single bytes most: memchr has no set-up to pay at every match.
  const void* found =
      part.size() == 1 ? std::memchr(from, part[0], left) : memmem(from, left, part.data(), part.size());
  if (found == nullptr) return absl::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t FindLastBytes(absl::string_view text, absl::string_view part) {
  // Over the reversed bytes, as memmem is linear and rfind is not.
  std::string backwards(text.rbegin(), text.rend());
  std::string part_backwards(part.rbegin(), part.rend());
  size_t found = FindBytes(backwards, part_backwards, 0);
  return found == absl::string_view::npos ? found : text.size() - found - part.size();
}

Text Strip(const Text& text, const Text* characters, Side side) {
  StripSet set(characters);
  size_t begin = 0;
  size_t end = text.size();
  while (side != Side::kRight && begin < end) {
    Character c = DecodeCharacter(text.bytes(), begin);
    if (!set.Has(c.code)) break;
    begin += c.size;
  }
  while (side != Side::kLeft && end > begin) {
    Character c = CharacterBefore(text.bytes(), end);
    if (!set.Has(c.code)) break;
    end -= c.size;
  }
  return text.Range(begin, end);
}

Text Replace(const Text& text, const Text& from, const Text& to, int64_t count) {
  Text out;
  size_t p = 0;
  if (from.empty()) {
    // Python puts `to` before every character and at the end.
    for (; count != 0; --count) {
      out.Append(to);
      if (p == text.size() || out.too_long()) break;
      size_t size = DecodeCharacter(text.bytes(), p).size;
      out.AppendRange(text, p, p + size);
      p += size;
    }
    out.AppendRange(text, p, text.size());
    return out;
  }
  for (; count != 0 && !out.too_long(); --count) {
    size_t found = FindBytes(text.bytes(), from.bytes(), p);
    if (found == absl::string_view::npos) break;
    out.AppendRange(text, p, found);
    out.Append(to);
    p = found + from.size();
  }
  out.AppendRange(text, p, text.size());
  return out;
}

std::vector<Text> SplitBy(const Text& text, absl::string_view separator, int64_t limit, bool from_right) {
  std::vector<size_t> cuts;
  if (!from_right) {
    for (size_t p = 0;
         (limit < 0 || static_cast<int64_t>(cuts.size()) < limit) && cuts.size() < kMaxPieces;) {
      size_t found = FindBytes(text.bytes(), separator, p);
      if (found == absl::string_view::npos) break;
      cuts.push_back(found);
      p = found + separator.size();
    }
  } else {
    std::string backwards(text.bytes().rbegin(), text.bytes().rend());
    std::string wanted(separator.rbegin(), separator.rend());
    for (size_t p = 0;
         (limit < 0 || static_cast<int64_t>(cuts.size()) < limit) && cuts.size() < kMaxPieces;) {
      size_t found = FindBytes(backwards, wanted, p);
      if (found == absl::string_view::npos) break;
      cuts.push_back(text.size() - found - separator.size());
      p = found + separator.size();
    }
    std::reverse(cuts.begin(), cuts.end());
  }
  std::vector<Text> parts;
  size_t begin = 0;
  for (size_t cut : cuts) {
    parts.push_back(text.Range(begin, cut));
    begin = cut + separator.size();
  }
  parts.push_back(text.Range(begin, text.size()));
  return parts;
}

std::vector<Text> SplitBlanks(const Text& text, int64_t limit, bool from_right) {
  std::vector<TextRange> words;
  for (size_t p = SkipSpace(text.bytes(), 0); p < text.size() && words.size() < kMaxPieces;) {
    size_t begin = p;
    while (p < text.size()) {
      Character c = DecodeCharacter(text.bytes(), p);
      if (IsSpace(c.code)) break;
      p += c.size;
    }
    words.push_back({begin, p});
    p = SkipSpace(text.bytes(), p);
  }
  // Past the limit the rest stays one piece, with the blanks inside and beyond it.
  if (limit >= 0 && words.size() > static_cast<size_t>(limit)) {
    size_t kept = static_cast<size_t>(limit);
    if (from_right) {
      size_t joined = words.size() - kept - 1;
      words[joined].begin = 0;
      words.erase(words.begin(), words.begin() + static_cast<ptrdiff_t>(joined));
    } else {
      words[kept].end = text.size();
      words.resize(kept + 1);
    }
  }
  std::vector<Text> parts;
  for (const TextRange& word : words) parts.push_back(text.Range(word.begin, word.end));
  return parts;
}

std::vector<Text> SplitLines(const Text& text, bool keep_ends) {
  std::vector<Text> lines;
  size_t begin = 0;
  for (size_t p = 0; p < text.size() && lines.size() < kMaxPieces;) {
    Character c = DecodeCharacter(text.bytes(), p);
    size_t end = p;
    p += c.size;
    if (!IsLineBreak(c.code)) continue;
    if (c.code == '\r' && p < text.size() && text.bytes()[p] == '\n') ++p;
    lines.push_back(text.Range(begin, keep_ends ? p : end));
    begin = p;
  }
  if (begin < text.size()) lines.push_back(text.Range(begin, text.size()));
  return lines;
}

Text Lower(const Text& text) {
  return MapCharacters(text, [](char32_t) { return CaseForm::kLower; });
}

Text Upper(const Text& text) {
  return MapCharacters(text, [](char32_t) { return CaseForm::kUpper; });
}

Text Capitalize(const Text& text) {
  return MapCharacters(text, [first = true](char32_t) mutable {
    return std::exchange(first, false) ? CaseForm::kTitle : CaseForm::kLower;
  });
}

Text Title(const Text& text) {
  return MapCharacters(text, [inside = false](char32_t code) mutable {
    return std::exchange(inside, IsCased(code)) ? CaseForm::kLower : CaseForm::kTitle;
  });
}

Text TitleWords(const Text& text) {
  return MapCharacters(text, [begins = true](char32_t code) mutable {
    bool separates =
        IsSpace(code) || (code < 0x80 && std::strchr("-({[<", static_cast<int>(code)) != nullptr);
    return std::exchange(begins, separates) ? CaseForm::kUpper : CaseForm::kLower;
  });
}

}  // namespace millrace::jinja
