// What is asked of a device that samples: the questions of kernels/sample.h, and their answers as results.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "common/generation.h"
#include "common/ids.h"
#include "kernels/sample.h"
#include "worker/stage/stage_batch.h"

namespace millrace {

// Why the logits of a row are needed, and where their answer goes.
struct WantedLogits {
  uint32_t row = 0;  // of the batch
  const StageSegment* segment = nullptr;
  SequenceResult* result = nullptr;
  std::optional<TokenId> next_prompt_id;  // report its log probability
  bool sample = false;
};

// Thread: compute. Holds scratch of the size of the vocabulary.
class SampleQuestions {
 public:
  explicit SampleQuestions(uint32_t vocabulary_size) : occurrences_(vocabulary_size, 0) {}

  // At most two for each of `wanted`, whose row of logits is its index. Valid until the next call, or until
  // what `wanted` points to goes.
  absl::Span<const kernels::SampleRow> Ask(absl::Span<const WantedLogits> wanted);

  // Puts the answers to what Ask returned for `wanted` into its results.
  static void Answer(absl::Span<const WantedLogits> wanted, const kernels::SampleResult* answers);

  uint64_t bytes() const { return occurrences_.size() * sizeof(uint32_t); }

 private:
  void AskForToken(const WantedLogits& wanted, kernels::SampleRow& row);
  // Each id of the history once, with how often it is in the output.
  absl::Span<const std::pair<uint32_t, uint32_t>> CountHistory(const StageSegment& segment);

  std::vector<kernels::SampleRow> rows_;
  std::vector<std::vector<std::pair<uint32_t, uint32_t>>> seen_;  // by place in rows_
  std::vector<uint32_t> occurrences_;                             // [vocabulary], all 0 between calls
};

}  // namespace millrace
