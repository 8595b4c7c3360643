#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/status_macros.h"
#include "worker/stage/stage_model.h"

namespace millrace {
namespace {

// The checks of one segment. All messages begin with the same place.
class SegmentCheck {
 public:
  SegmentCheck(MicrobatchId microbatch, const StageSegment& segment, const StageLimits& limits)
      : microbatch_(microbatch), segment_(segment), limits_(limits) {}

  absl::Status Run() const {
    RETURN_IF_ERROR(Positions());
    RETURN_IF_ERROR(TokenIds("token_ids", segment_.token_ids));
    RETURN_IF_ERROR(Blocks());
    RETURN_IF_ERROR(PromptLogprobs());
    RETURN_IF_ERROR(Suppressed());
    RETURN_IF_ERROR(History());
    return segment_.sampling.has_value() ? Sampling(*segment_.sampling) : absl::OkStatus();
  }

 private:
  template <typename... Args>
  absl::Status Refuse(const Args&... args) const {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch_.value(), ", sequence ",
                                                   segment_.sequence.value(), ": ", args...));
  }

  uint64_t end_position() const { return uint64_t{segment_.first_position} + segment_.token_ids.size(); }

  absl::Status Positions() const {
    if (segment_.token_ids.empty()) return Refuse("no rows; must have at least 1");
    if (end_position() > limits_.context_tokens) {
      return Refuse(segment_.token_ids.size(), " rows from position ", segment_.first_position, " end at ",
                    end_position(), "; the context is ", limits_.context_tokens, " tokens");
    }
    return absl::OkStatus();
  }

  absl::Status TokenIds(absl::string_view field, const std::vector<TokenId>& ids) const {
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] >= limits_.vocabulary_size) {
        return Refuse(field, "[", i, "] is ", ids[i], "; must be below the vocabulary size ",
                      limits_.vocabulary_size);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Blocks() const {
    if (limits_.block_tokens == 0) return Refuse("no KV cache: its blocks hold 0 tokens");
    const uint64_t needed = (end_position() - 1) / limits_.block_tokens + 1;
    if (segment_.block_ids.size() < needed || segment_.block_ids.size() > limits_.num_blocks) {
      return Refuse(segment_.block_ids.size(), " block ids; positions up to ", end_position(), " need ",
                    needed, " and there are ", limits_.num_blocks, " blocks");
    }
    for (size_t i = 0; i < segment_.block_ids.size(); ++i) {
      if (segment_.block_ids[i] >= limits_.num_blocks) {
        return Refuse("block_ids[", i, "] is ", segment_.block_ids[i],
                      "; must be below the number of blocks ", limits_.num_blocks);
      }
    }
    return absl::OkStatus();
  }

  absl::Status PromptLogprobs() const {
    if (segment_.prompt_logprobs.value_or(0) > kMaxLogprobs) {
      return Refuse("prompt_logprobs is ", *segment_.prompt_logprobs, "; must be at most ", kMaxLogprobs);
    }
    if (segment_.next_prompt_id.value_or(0) >= limits_.vocabulary_size) {
      return Refuse("next_prompt_id is ", *segment_.next_prompt_id, "; must be below the vocabulary size ",
                    limits_.vocabulary_size);
    }
    return absl::OkStatus();
  }

  absl::Status Suppressed() const {
    if (segment_.suppressed_ids.size() > limits_.vocabulary_size) {
      return Refuse(segment_.suppressed_ids.size(), " suppressed ids; must be at most the vocabulary size ",
                    limits_.vocabulary_size);
    }
    return TokenIds("suppressed_ids", segment_.suppressed_ids);
  }

  absl::Status History() const {
    const bool needed = segment_.sampling.has_value() && segment_.sampling->needs_history();
    const uint64_t expected = needed ? end_position() : 0;
    if (segment_.history.size() != expected) {
      return Refuse("history of ", segment_.history.size(), " tokens; must be ", expected,
                    needed ? ", all tokens so far, as penalties are on" : ", as no penalty is on");
    }
    if (needed && segment_.history_prompt_tokens > segment_.history.size()) {
      return Refuse("history_prompt_tokens is ", segment_.history_prompt_tokens, "; must be at most the ",
                    segment_.history.size(), " tokens of the history");
    }
    return TokenIds("history", segment_.history);
  }

  // NaN fails every comparison, and with it the check.
  absl::Status InRange(absl::string_view field, double value, bool in_range, absl::string_view range) const {
    if (std::isfinite(value) && in_range) return absl::OkStatus();
    return Refuse(field, " is ", value, "; must be ", range);
  }

  absl::Status Sampling(const SamplingOptions& options) const {
    const float repetition = options.repetition_penalty;
    const float presence = options.presence_penalty;
    const float frequency = options.frequency_penalty;
    RETURN_IF_ERROR(
        InRange("temperature", options.temperature, options.temperature >= 0, "finite, at least 0"));
    RETURN_IF_ERROR(InRange("top_p", options.top_p, options.top_p > 0 && options.top_p <= 1, "in (0, 1]"));
    RETURN_IF_ERROR(InRange("min_p", options.min_p, options.min_p >= 0 && options.min_p <= 1, "in [0, 1]"));
    RETURN_IF_ERROR(InRange("repetition_penalty", repetition, repetition > 0, "finite, above 0"));
    RETURN_IF_ERROR(InRange("presence_penalty", presence, std::abs(presence) <= 2, "in [-2, 2]"));
    RETURN_IF_ERROR(InRange("frequency_penalty", frequency, std::abs(frequency) <= 2, "in [-2, 2]"));
    if (options.logprobs.value_or(0) > kMaxLogprobs) {
      return Refuse("logprobs is ", *options.logprobs, "; must be at most ", kMaxLogprobs);
    }
    return LogitBias(options.logit_bias);
  }

  absl::Status LogitBias(const std::vector<std::pair<TokenId, float>>& bias) const {
    std::vector<TokenId> ids;
    for (const auto& [id, value] : bias) {
      RETURN_IF_ERROR(InRange(absl::StrCat("logit_bias of token ", id), value, true, "finite"));
      ids.push_back(id);
    }
    RETURN_IF_ERROR(TokenIds("logit_bias", ids));
    std::sort(ids.begin(), ids.end());
    const auto twice = std::adjacent_find(ids.begin(), ids.end());
    if (twice != ids.end()) return Refuse("logit_bias names token ", *twice, " twice; must name it once");
    return absl::OkStatus();
  }

  const MicrobatchId microbatch_;
  const StageSegment& segment_;
  const StageLimits& limits_;
};

absl::Status CheckRows(const StageBatch& batch, const StageLimits& limits) {
  uint64_t rows = 0;
  for (const StageSegment& segment : batch.segments) rows += segment.token_ids.size();
  if (!batch.segments.empty() && rows <= limits.max_rows) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("microbatch ", batch.id.value(), ": ", batch.segments.size(), " segments, ", rows,
                   " rows; must be at least 1 segment and at most ", limits.max_rows, " rows"));
}

absl::Status CheckSequences(const StageBatch& batch) {
  std::vector<SequenceId> sequences;
  for (const StageSegment& segment : batch.segments) sequences.push_back(segment.sequence);
  std::sort(sequences.begin(), sequences.end());
  const auto twice = std::adjacent_find(sequences.begin(), sequences.end());
  if (twice == sequences.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("microbatch ", batch.id.value(), ": sequence ",
                                                 twice->value(), " has two segments; must have one"));
}

struct BlockUse {
  BlockId block;
  uint32_t segment;  // index into the batch
  bool written;

  bool operator<(const BlockUse& other) const {
    return std::tie(block, segment) < std::tie(other.block, other.segment);
  }
};

std::vector<BlockUse> SortedBlockUses(const StageBatch& batch, const StageLimits& limits) {
  std::vector<BlockUse> uses;
  for (uint32_t s = 0; s < batch.segments.size(); ++s) {
    const StageSegment& segment = batch.segments[s];
    const size_t first_written = segment.first_position / limits.block_tokens;
    for (size_t i = 0; i < segment.block_ids.size(); ++i) {
      uses.push_back({segment.block_ids[i], s, i >= first_written});
    }
  }
  std::sort(uses.begin(), uses.end());
  return uses;
}

// `uses` are those of one block, one after another by segment.
absl::Status CheckUsesOfBlock(const StageBatch& batch, absl::Span<const BlockUse> uses) {
  const auto sequence = [&](size_t i) { return batch.segments[uses[i].segment].sequence.value(); };
  bool written = uses[0].written;
  for (size_t i = 1; i < uses.size(); ++i) {
    written |= uses[i].written;
    if (uses[i].segment == uses[i - 1].segment) {
      return absl::InvalidArgumentError(absl::StrCat("microbatch ", batch.id.value(), ", sequence ",
                                                     sequence(i), ": block ", uses[i].block,
                                                     " is twice in its table; must be once"));
    }
    if (written) {
      return absl::InvalidArgumentError(absl::StrCat(
          "microbatch ", batch.id.value(), ": block ", uses[i].block, " is used by sequences ", sequence(0),
          " and ", sequence(i), ", and one writes to it; it must belong to one alone"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBlockSharing(const StageBatch& batch, const StageLimits& limits) {
  const std::vector<BlockUse> uses = SortedBlockUses(batch, limits);
  for (size_t begin = 0, end = 0; begin < uses.size(); begin = end) {
    while (end < uses.size() && uses[end].block == uses[begin].block) ++end;
    RETURN_IF_ERROR(CheckUsesOfBlock(batch, absl::MakeConstSpan(uses).subspan(begin, end - begin)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckBatch(const StageBatch& batch, const StageLimits& limits) {
  RETURN_IF_ERROR(CheckRows(batch, limits));
  for (const StageSegment& segment : batch.segments) {
    RETURN_IF_ERROR(SegmentCheck(batch.id, segment, limits).Run());
  }
  RETURN_IF_ERROR(CheckSequences(batch));
  return CheckBlockSharing(batch, limits);
}

}  // namespace millrace
