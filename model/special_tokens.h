// Finds the tokens that are recognised in text before anything is split or merged: control and user-defined
// ones.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "model/tokenizer.h"

namespace millrace {

struct SpecialToken {
  std::string text;  // not empty
  TokenId id;
  bool control;  // recognised only where EncodeOptions allow it; else user-defined: recognised everywhere
};

// Immutable. Thread: any.
class SpecialTokens {
 public:
  // Of equal texts, a control token counts before a user-defined one, then the lowest id.
  explicit SpecialTokens(std::vector<SpecialToken> tokens);

  struct Match {
    TextRange range;
    TokenId id;
  };

  // One pass over one text. Thread: one.
  class Scanner {
   public:
    // `tokens` and `text` outlive this. `options.literal_ranges` are used, too.
    Scanner(const SpecialTokens& tokens, absl::string_view text, const EncodeOptions& options)
        : tokens_(tokens),
          text_(text),
          parse_control_(options.parse_special),
          literals_(options.literal_ranges) {}

    // The next match behind those before: the leftmost, and there the longest, that may be recognised.
    std::optional<Match> Next();

   private:
    // A control token that begins at `at` ends here at most, so that it shares no byte with a literal range.
    size_t ControlLimit(size_t at);

    const SpecialTokens& tokens_;
    absl::string_view text_;
    bool parse_control_;
    absl::Span<const TextRange> literals_;
    size_t at_ = 0;
  };

 private:
  // The longest token at the start of `text`; a control token has at most `control_limit` bytes.
  const SpecialToken* FindLongest(absl::string_view text, size_t control_limit) const;

  std::vector<SpecialToken> tokens_;                         // sorted by text
  std::array<std::pair<uint32_t, uint32_t>, 256> by_first_;  // [begin, end) in tokens_, by first byte
};

}  // namespace millrace
