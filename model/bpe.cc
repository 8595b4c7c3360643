#include "model/bpe.h"

#include <algorithm>
#include <cstddef>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/byte_alphabet.h"
#include "model/merge_queue.h"

namespace millrace {
namespace {

// Up to so many symbols, looking through all neighbours for every merge is faster than keeping a heap.
constexpr size_t kShortPiece = 32;

// Positions in a piece are 32 bits wide: of a longer one, the parts are encoded one by one.
constexpr size_t kLongestPiece = size_t{1} << 30;

constexpr uint32_t kEnd = UINT32_MAX;

uint64_t PairKey(uint32_t left, uint32_t right) {
  return uint64_t{left} << 32 | right;
}

}  // namespace

absl::StatusOr<BytePairEncoder> BytePairEncoder::Create(const std::vector<MergeableToken>& tokens,
                                                        const std::vector<std::string>& merges,
                                                        bool ignore_merges) {
  BytePairEncoder encoder;
  encoder.tokens_.reserve(tokens.size());
  for (const MergeableToken& token : tokens) {
    encoder.tokens_.try_emplace(token.bytes, token.id);
    encoder.first_virtual_ = std::max(encoder.first_virtual_, token.id + 1);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    const auto found = encoder.tokens_.find(absl::string_view(&text, 1));
    if (found != encoder.tokens_.end()) encoder.byte_symbols_[byte] = found->second;
  }
  absl::flat_hash_map<std::string, Symbol> virtual_symbols;
  encoder.merges_.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    RETURN_IF_ERROR(encoder.AddMerge(merges[i], static_cast<uint32_t>(i), &virtual_symbols));
  }
  encoder.FindWholePieces(tokens, ignore_merges);
  return encoder;
}

absl::Status BytePairEncoder::AddMerge(absl::string_view merge, uint32_t rank,
                                       absl::flat_hash_map<std::string, Symbol>* virtual_symbols) {
  const size_t space = merge.find(' ');
  const std::optional<std::string> left = BytesOfSpelling(merge.substr(0, space));
  const std::optional<std::string> right =
      space == merge.npos ? std::nullopt : BytesOfSpelling(merge.substr(space + 1));
  if (!left || !right || left->empty() || right->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("merge ", rank, " is not two spellings in the byte alphabet with a space between"));
  }
  const Symbol left_symbol = Intern(*left, virtual_symbols);
  const Symbol right_symbol = Intern(*right, virtual_symbols);
  const Symbol result = Intern(*left + *right, virtual_symbols);
  merges_.try_emplace(PairKey(left_symbol, right_symbol), Merge{rank, result});
  return absl::OkStatus();
}

BytePairEncoder::Symbol BytePairEncoder::Intern(std::string bytes,
                                                absl::flat_hash_map<std::string, Symbol>* virtual_symbols) {
  const auto token = tokens_.find(bytes);
  if (token != tokens_.end()) return token->second;
  const Symbol next = first_virtual_ + static_cast<Symbol>(virtual_bytes_.size());
  const auto [entry, inserted] = virtual_symbols->try_emplace(std::move(bytes), next);
  if (inserted) virtual_bytes_.push_back(entry->first);
  return entry->second;
}

void BytePairEncoder::FindWholePieces(const std::vector<MergeableToken>& tokens, bool ignore_merges) {
  if (ignore_merges) {
    whole_pieces_ = tokens_;
    return;
  }
  whole_pieces_.reserve(tokens.size());
  std::vector<TokenId> ids;
  for (const MergeableToken& token : tokens) {
    ids.clear();
    EncodeByMerges(token.bytes, &ids);
    if (ids.size() == 1 && ids[0] == token.id) whole_pieces_.emplace(token.bytes, token.id);
  }
}

BytePairEncoder::Merge BytePairEncoder::FindMerge(Symbol left, Symbol right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? Merge{} : found->second;
}

void BytePairEncoder::Encode(absl::string_view piece, std::vector<TokenId>* ids) const {
  const auto whole = whole_pieces_.find(piece);
  if (whole != whole_pieces_.end()) {
    ids->push_back(whole->second);
    return;
  }
  for (; !piece.empty(); piece.remove_prefix(std::min(piece.size(), kLongestPiece))) {
    EncodeByMerges(piece.substr(0, kLongestPiece), ids);
  }
}

void BytePairEncoder::EncodeByMerges(absl::string_view piece, std::vector<TokenId>* ids) const {
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (char c : piece) {
    const Symbol symbol = byte_symbols_[static_cast<uint8_t>(c)];
    if (symbol != kNoSymbol) symbols.push_back(symbol);
  }
  if (symbols.size() <= kShortPiece) {
    MergeShort(&symbols);
  } else {
    MergeLong(&symbols);
  }
  for (Symbol symbol : symbols) Emit(symbol, ids);
}

void BytePairEncoder::MergeShort(std::vector<Symbol>* symbols) const {
  size_t count = symbols->size();
  std::array<Merge, kShortPiece> merges;  // merges[i]: of symbols i and i + 1
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = FindMerge((*symbols)[i], (*symbols)[i + 1]);
  while (count > 1) {
    const auto best = std::min_element(merges.begin(), merges.begin() + (count - 1),
                                       [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
    if (best->rank == kNoRank) break;
    const size_t at = best - merges.begin();
    (*symbols)[at] = best->result;
    std::copy(symbols->begin() + at + 2, symbols->begin() + count, symbols->begin() + at + 1);
    std::copy(merges.begin() + at + 1, merges.begin() + (count - 1), merges.begin() + at);
    --count;
    if (at + 1 < count) merges[at] = FindMerge((*symbols)[at], (*symbols)[at + 1]);
    if (at > 0) merges[at - 1] = FindMerge((*symbols)[at - 1], (*symbols)[at]);
  }
  symbols->resize(count);
}

void BytePairEncoder::MergeLong(std::vector<Symbol>* symbols) const {
  // A symbol that was merged into its left neighbour becomes kNoSymbol; `next` and `previous` link the
  // others.
  const uint32_t count = static_cast<uint32_t>(symbols->size());
  std::vector<uint32_t> next(count), previous(count);
  MergeQueue queue;
  const auto push = [&](uint32_t left, uint32_t right) {
    const Symbol left_symbol = (*symbols)[left], right_symbol = (*symbols)[right];
    const Merge merge = FindMerge(left_symbol, right_symbol);
    if (merge.rank != kNoRank) queue.Push({merge.rank, left_symbol, right_symbol, merge.result}, left);
  };
  for (uint32_t i = 0; i < count; ++i) {
    previous[i] = i == 0 ? kEnd : i - 1;
    next[i] = i + 1 == count ? kEnd : i + 1;
    if (next[i] != kEnd) push(i, i + 1);
  }
  while (const std::optional<MergeCandidate> candidate = queue.Pop()) {
    const auto& [rule, left] = *candidate;
    const uint32_t right = next[left];
    // Stale: another merge took one of the two.
    if (right == kEnd || (*symbols)[left] != rule.left || (*symbols)[right] != rule.right) continue;
    (*symbols)[left] = rule.result;
    (*symbols)[right] = kNoSymbol;
    next[left] = next[right];
    if (next[left] != kEnd) {
      previous[next[left]] = left;
      push(left, next[left]);
    }
    if (previous[left] != kEnd) push(previous[left], left);
  }
  symbols->erase(std::remove(symbols->begin(), symbols->end(), kNoSymbol), symbols->end());
}

void BytePairEncoder::Emit(Symbol symbol, std::vector<TokenId>* ids) const {
  if (symbol < first_virtual_) {
    ids->push_back(symbol);
    return;
  }
  for (char c : virtual_bytes_[symbol - first_virtual_])
    ids->push_back(byte_symbols_[static_cast<uint8_t>(c)]);
}

}  // namespace millrace
