#include "model/special_tokens.h"

#include <algorithm>
#include <tuple>

namespace millrace {

SpecialTokens::SpecialTokens(std::vector<SpecialToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(), [](const SpecialToken& a, const SpecialToken& b) {
    return std::forward_as_tuple(a.text, !a.control, a.id) < std::forward_as_tuple(b.text, !b.control, b.id);
  });
  const auto same_text = [](const SpecialToken& a, const SpecialToken& b) { return a.text == b.text; };
  tokens_.erase(std::unique(tokens_.begin(), tokens_.end(), same_text), tokens_.end());
  by_first_.fill({0, 0});
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    auto& [begin, end] = by_first_[static_cast<uint8_t>(tokens_[i].text[0])];
    if (begin == end) begin = i;
    end = i + 1;
  }
}

const SpecialToken* SpecialTokens::FindLongest(absl::string_view text, size_t control_limit) const {
  const SpecialToken* best = nullptr;
  auto [begin, end] = by_first_[static_cast<uint8_t>(text[0])];
  // [begin, end): the tokens that begin with the first `depth` bytes of `text`. One that is no longer comes
  // first.
  for (size_t depth = 1; begin < end; ++depth) {
    if (tokens_[begin].text.size() == depth) {
      if (!tokens_[begin].control || depth <= control_limit) best = &tokens_[begin];
      ++begin;
    }
    if (depth == text.size()) break;
    const auto byte = static_cast<uint8_t>(text[depth]);
    const auto at_depth = [depth](const SpecialToken& token) {
      return static_cast<uint8_t>(token.text[depth]);
    };
    const auto first = tokens_.begin() + begin;
    const auto last = tokens_.begin() + end;
    const auto low =
        std::partition_point(first, last, [&](const SpecialToken& t) { return at_depth(t) < byte; });
    const auto high =
        std::partition_point(low, last, [&](const SpecialToken& t) { return at_depth(t) == byte; });
    begin = static_cast<uint32_t>(low - tokens_.begin());
    end = static_cast<uint32_t>(high - tokens_.begin());
  }
  return best;
}

size_t SpecialTokens::Scanner::ControlLimit(size_t at) {
  if (!parse_control_) return at;
  while (!literals_.empty() && (literals_[0].end <= at || literals_[0].begin >= literals_[0].end)) {
    literals_.remove_prefix(1);
  }
  return literals_.empty() ? text_.size() : std::max(at, literals_[0].begin);
}

std::optional<SpecialTokens::Match> SpecialTokens::Scanner::Next() {
  for (; at_ < text_.size(); ++at_) {
    const auto [begin, end] = tokens_.by_first_[static_cast<uint8_t>(text_[at_])];
    if (begin == end) continue;
    const SpecialToken* found = tokens_.FindLongest(text_.substr(at_), ControlLimit(at_) - at_);
    if (found == nullptr) continue;
    const TextRange range{at_, at_ + found->text.size()};
    at_ = range.end;
    return Match{range, found->id};
  }
  return std::nullopt;
}

}  // namespace millrace
