// One sequence's tokens on their way to the client: text, stop strings, log probabilities, usage.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "common/generation.h"
#include "common/ids.h"
#include "coordinator/scheduler/microbatch_plan.h"
#include "millrace/v1/inference.pb.h"
#include "model/detokenizer.h"
#include "model/tokenizer.h"

namespace millrace {

struct SequenceTextOptions {
  uint32_t min_tokens = 0;  // no stop string is matched before so many tokens
  std::vector<std::string> stop_strings;
  absl::flat_hash_set<TokenId>
      stop_tokens;  // end the sequence and give no text: stop and end-of-sequence tokens
  uint64_t prompt_characters = 0;
};

// Thread: text.
class SequenceText {
 public:
  // `tokenizer` outlives this.
  SequenceText(const Tokenizer* tokenizer, SequenceTextOptions options);

  struct Step {
    std::optional<v1::GenerateEvent> event;  // a TokenDelta, unless everything is held back
    std::optional<uint32_t> stop_at;         // a stop string matched with the token of this number (1-based)
  };
  // Takes the next generated token; after a match, drops it. INTERNAL: an id outside the vocabulary.
  absl::StatusOr<Step> OnToken(const TokenReady& token);

  // INTERNAL: an id outside the vocabulary.
  absl::StatusOr<v1::GenerateEvent> OnPromptLogprobs(const PromptLogprobsReady& ready) const;

  // What ends the stream: what was held back, if anything, and Finished. A stop string that matched overrides
  // the reason and the count of `finished`.
  std::vector<v1::GenerateEvent> OnFinished(const SequenceFinished& finished);

  bool matched() const { return matched_stop_.has_value(); }

 private:
  struct HeldToken {
    TokenId id;
    std::optional<v1::PositionLogprobs> logprobs;
  };

  absl::StatusOr<v1::PositionLogprobs> ToProto(const TokenLogprobs& logprobs) const;
  std::optional<v1::GenerateEvent> Release(size_t tokens, std::string text);
  v1::Finished Summary(const SequenceFinished& finished) const;

  const Tokenizer* const tokenizer_;
  const SequenceTextOptions options_;
  StreamDetokenizer detokenizer_;
  std::deque<HeldToken> held_;  // generated, not yet sent
  uint32_t generated_ = 0;      // tokens taken, up to a match
  uint64_t characters_ = 0;     // sent
  std::optional<size_t> matched_stop_;
};

}  // namespace millrace
