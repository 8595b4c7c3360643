// Byte-pair encoding of one piece of text: neighbours are merged, lowest rank first, until no merge applies
// (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"

namespace millrace {

// A token that merges may make.
struct MergeableToken {
  TokenId id;
  absl::string_view bytes;  // not empty
};

// Immutable after Create. Thread: any.
class BytePairEncoder {
 public:
  // `tokens`: their bytes outlive the encoder; of equal ones the first counts. `merges`: as in the file,
  // "left right" in the byte alphabet, best first; of equal ones the first counts. REQUIRES: ids and number
  // of merges below 2^30. INVALID_ARGUMENT: a merge that is not two spellings; the message has its index.
  static absl::StatusOr<BytePairEncoder> Create(const std::vector<MergeableToken>& tokens,
                                                const std::vector<std::string>& merges, bool ignore_merges);

  // Appends the ids of `piece`. O(n log n). Bytes that have no token are left out, and their neighbours meet
  // (as in Hugging Face tokenizers). What merges make and the vocabulary lacks comes out as its single bytes.
  void Encode(absl::string_view piece, std::vector<TokenId>* ids) const;

  bool HasByte(uint8_t byte) const { return byte_symbols_[byte] != kNoSymbol; }

 private:
  // A token's id, or a number from first_virtual_ up for what is only made on the way to a token.
  using Symbol = uint32_t;
  static constexpr Symbol kNoSymbol = UINT32_MAX;
  static constexpr uint32_t kNoRank = UINT32_MAX;

  struct Merge {
    uint32_t rank = kNoRank;
    Symbol result = kNoSymbol;
  };

  BytePairEncoder() { byte_symbols_.fill(kNoSymbol); }

  absl::Status AddMerge(absl::string_view merge, uint32_t rank,
                        absl::flat_hash_map<std::string, Symbol>* virtual_symbols);
  Symbol Intern(std::string bytes, absl::flat_hash_map<std::string, Symbol>* virtual_symbols);
  void FindWholePieces(const std::vector<MergeableToken>& tokens, bool ignore_merges);
  Merge FindMerge(Symbol left, Symbol right) const;
  void EncodeByMerges(absl::string_view piece, std::vector<TokenId>* ids) const;
  void MergeShort(std::vector<Symbol>* symbols) const;
  void MergeLong(std::vector<Symbol>* symbols) const;
  void Emit(Symbol symbol, std::vector<TokenId>* ids) const;

  std::array<Symbol, 256> byte_symbols_;
  absl::flat_hash_map<absl::string_view, TokenId> tokens_;        // by bytes
  absl::flat_hash_map<absl::string_view, TokenId> whole_pieces_;  // pieces whose encoding is one token
  absl::flat_hash_map<uint64_t, Merge> merges_;                   // by left << 32 | right
  Symbol first_virtual_ = 0;
  std::vector<std::string> virtual_bytes_;  // by symbol - first_virtual_
};

}  // namespace millrace
