#include "model/detokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "model/utf8.h"

namespace millrace {
namespace {

constexpr size_t kOpen = SIZE_MAX;

}  // namespace

StreamDetokenizer::StreamDetokenizer(const Tokenizer* tokenizer, std::vector<std::string> stops)
    : tokenizer_(tokenizer), stops_(std::move(stops)) {
  for (const std::string& stop : stops_) longest_stop_ = std::max(longest_stop_, stop.size());
}

StreamDetokenizer::Step StreamDetokenizer::Push(TokenId token, bool match_stops) {
  if (!tokenizer_->IsControl(token)) Append(tokenizer_->TokenBytes(token));
  token_ends_.push_back(partial_.empty() ? text_.size() : kOpen);
  if (!match_stops) {
    match_from_ = text_.size();
    partial_may_match_ = partial_.empty();
  } else if (const std::optional<Match> match = FindStop()) {
    Step step{token_ends_.size(), text_.substr(0, match->begin), match->stop};
    text_.clear();
    partial_.clear();
    token_ends_.clear();
    match_from_ = 0;
    return step;
  }
  // Ends ascend, so those within what is certain come first.
  const auto certain = std::upper_bound(token_ends_.begin(), token_ends_.end(), CertainBytes());
  return Release(certain - token_ends_.begin());
}

StreamDetokenizer::Step StreamDetokenizer::Flush() {
  if (!partial_.empty()) {
    partial_.clear();
    text_.append(kReplacementCharacter.data(), kReplacementCharacter.size());
  }
  std::replace(token_ends_.begin(), token_ends_.end(), kOpen, text_.size());
  return Release(token_ends_.size());
}

void StreamDetokenizer::Append(absl::string_view bytes) {
  bool completes_partial = !partial_.empty();
  const std::string joined = std::exchange(partial_, {}) + std::string(bytes);
  absl::string_view rest = joined;
  while (!rest.empty()) {
    const Utf8Unit unit = NextUtf8(rest);
    if (unit.kind == Utf8Unit::kIncomplete) {
      partial_ = std::string(rest);
      return;
    }
    const absl::string_view character =
        unit.kind == Utf8Unit::kCharacter ? rest.substr(0, unit.length) : kReplacementCharacter;
    text_.append(character.data(), character.size());
    rest.remove_prefix(unit.length);
    if (completes_partial) {
      // What was partial is a valid beginning, so the first unit covers all of it.
      completes_partial = false;
      std::replace(token_ends_.begin(), token_ends_.end(), kOpen, text_.size());
      if (!partial_may_match_) match_from_ = text_.size();
      partial_may_match_ = true;
    }
  }
}

std::optional<StreamDetokenizer::Match> StreamDetokenizer::FindStop() const {
  std::optional<Match> best;
  for (size_t i = 0; i < stops_.size(); ++i) {
    const size_t begin = text_.find(stops_[i], match_from_);
    if (begin == std::string::npos) continue;
    if (!best || begin < best->begin ||
        (begin == best->begin && stops_[i].size() > stops_[best->stop].size())) {
      best = Match{begin, i};
    }
  }
  return best;
}

// The bytes of text_ in which no later text can make a stop string begin.
size_t StreamDetokenizer::CertainBytes() const {
  const size_t longest_start = longest_stop_ > 0 ? longest_stop_ - 1 : 0;
  const size_t first = text_.size() - std::min(longest_start, text_.size());
  for (size_t at = std::max(match_from_, first); at < text_.size(); ++at) {
    const absl::string_view tail = absl::string_view(text_).substr(at);
    const auto begins_with_tail = [tail](const std::string& stop) { return absl::StartsWith(stop, tail); };
    if (std::any_of(stops_.begin(), stops_.end(), begins_with_tail)) return at;
  }
  return text_.size();
}

// The oldest `tokens` held tokens, whose ends are known.
StreamDetokenizer::Step StreamDetokenizer::Release(size_t tokens) {
  if (tokens == 0) return {};
  const size_t end = token_ends_[tokens - 1];
  Step step{tokens, text_.substr(0, end), std::nullopt};
  text_.erase(0, end);
  token_ends_.erase(token_ends_.begin(), token_ends_.begin() + tokens);
  for (size_t& token_end : token_ends_) {
    if (token_end != kOpen) token_end -= end;
  }
  match_from_ -= std::min(match_from_, end);
  return step;
}

size_t CountCharacters(absl::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace millrace
