#include <algorithm>
#include <cstddef>

#include "model/jinja/text.h"

namespace millrace::jinja {
namespace {

struct CaseRange {
  char32_t first;
  char32_t last;
  uint32_t step;
  int32_t delta;
};
struct CaseSpecial {
  char32_t code;
  char32_t to[3];  // zero-padded
};
struct CodeRange {
  char32_t first;
  char32_t last;
};

#include "model/jinja/case_tables.inc"

template <size_t kCount>
char32_t MapByRange(const CaseRange (&ranges)[kCount], char32_t code) {
  auto range = std::lower_bound(std::begin(ranges), std::end(ranges), code,
                                [](const CaseRange& r, char32_t c) { return r.last < c; });
  if (range == std::end(ranges) || code < range->first || (code - range->first) % range->step != 0)
    return code;
  return static_cast<char32_t>(static_cast<int64_t>(code) + range->delta);
}

template <size_t kRanges, size_t kSpecials>
void AppendMapped(const CaseRange (&ranges)[kRanges], const CaseSpecial (&specials)[kSpecials], char32_t code,
                  std::string* out) {
  auto special = std::lower_bound(std::begin(specials), std::end(specials), code,
                                  [](const CaseSpecial& s, char32_t c) { return s.code < c; });
  if (special == std::end(specials) || special->code != code) {
    AppendUtf8(MapByRange(ranges, code), out);
    return;
  }
  for (char32_t to : special->to) {
    if (to != 0) AppendUtf8(to, out);
  }
}

}  // namespace

void AppendCase(char32_t code, CaseForm form, std::string* out) {
  switch (form) {
    case CaseForm::kLower:
      return AppendMapped(kLowerRanges, kLowerSpecials, code, out);
    case CaseForm::kUpper:
      return AppendMapped(kUpperRanges, kUpperSpecials, code, out);
    case CaseForm::kTitle:
      return AppendMapped(kTitleRanges, kTitleSpecials, code, out);
  }
}

bool IsCased(char32_t code) {
  auto range = std::lower_bound(std::begin(kCasedRanges), std::end(kCasedRanges), code,
                                [](const CodeRange& r, char32_t c) { return r.last < c; });
  return range != std::end(kCasedRanges) && range->first <= code;
}

}  // namespace millrace::jinja
