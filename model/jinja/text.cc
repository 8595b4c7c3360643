#include "model/jinja/text.h"

#include <algorithm>

namespace millrace::jinja {

bool Text::Reserve(size_t more) {
  if (too_long_ || more > kMaxTextBytes - bytes_.size()) {
    too_long_ = true;
    return false;
  }
  return true;
}

void Text::MarkUntrusted(size_t begin, size_t end) {
  if (begin == end) return;
  if (!untrusted_.empty() && untrusted_.back().end == begin) {
    untrusted_.back().end = end;
  } else {
    untrusted_.push_back({begin, end});
  }
}

void Text::Append(absl::string_view bytes, bool untrusted) {
  if (!Reserve(bytes.size())) return;
  size_t begin = bytes_.size();
  bytes_.append(bytes.data(), bytes.size());
  if (untrusted) MarkUntrusted(begin, bytes_.size());
}

void Text::AppendRange(const Text& other, size_t begin, size_t end) {
  if (!Reserve(end - begin)) return;
  size_t base = bytes_.size();
  bytes_.append(other.bytes_, begin, end - begin);
  too_long_ |= other.too_long_;
  auto range = std::upper_bound(other.untrusted_.begin(), other.untrusted_.end(), begin,
                                [](size_t position, const TextRange& r) { return position < r.end; });
  for (; range != other.untrusted_.end() && range->begin < end; ++range) {
    MarkUntrusted(base + std::max(range->begin, begin) - begin, base + std::min(range->end, end) - begin);
  }
}

Text Text::Range(size_t begin, size_t end) const {
  Text part;
  part.AppendRange(*this, begin, end);
  return part;
}

bool Text::IsUntrusted(size_t position) const {
  auto range = std::upper_bound(untrusted_.begin(), untrusted_.end(), position,
                                [](size_t p, const TextRange& r) { return p < r.end; });
  return range != untrusted_.end() && range->begin <= position;
}

namespace {

// The length a lead byte announces; 0 for a byte that starts nothing.
size_t SequenceLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead < 0xE0) return 2;
  if (lead >= 0xE0 && lead < 0xF0) return 3;
  if (lead >= 0xF0 && lead < 0xF5) return 4;
  return 0;
}

bool IsScalar(char32_t code, size_t length) {
  constexpr char32_t kSmallest[5] = {0, 0, 0x80, 0x800, 0x10000};
  return code >= kSmallest[length] && code <= 0x10FFFF && !(code >= 0xD800 && code <= 0xDFFF);
}

}  // namespace

Character DecodeCharacter(absl::string_view bytes, size_t position) {
  uint8_t lead = static_cast<uint8_t>(bytes[position]);
  Character invalid = {static_cast<char32_t>(0xDC00 + lead), 1};
  size_t length = SequenceLength(lead);
  if (length == 1) return {lead, 1};
  if (length == 0 || length > bytes.size() - position) return invalid;
  char32_t code = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    uint8_t next = static_cast<uint8_t>(bytes[position + i]);
    if ((next & 0xC0) != 0x80) return invalid;
    code = code << 6 | (next & 0x3F);
  }
  return IsScalar(code, length) ? Character{code, length} : invalid;
}

void AppendUtf8(char32_t code, std::string* out) {
  if (code >= 0xDC80 && code <= 0xDCFF) {
    out->push_back(static_cast<char>(code - 0xDC00));
  } else if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xC0 | code >> 6));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | code >> 12));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | code >> 18));
    out->push_back(static_cast<char>(0x80 | (code >> 12 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  }
}

bool IsSpace(char32_t code) {
  if (code < 0x80) return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20);
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
         code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

size_t SkipSpace(absl::string_view bytes, size_t position) {
  while (position < bytes.size()) {
    Character c = DecodeCharacter(bytes, position);
    if (!IsSpace(c.code)) break;
    position += c.size;
  }
  return position;
}

size_t TrimmedEnd(absl::string_view bytes) {
  size_t end = bytes.size();
  while (end > 0) {
    size_t start = end - 1;
    while (start > 0 && end - start < 4 && (static_cast<uint8_t>(bytes[start]) & 0xC0) == 0x80) --start;
    Character c = DecodeCharacter(bytes, start);
    if (start + c.size != end || !IsSpace(c.code)) break;
    end = start;
  }
  return end;
}

}  // namespace millrace::jinja
