// The end of the last stage: output norm, logits of the rows that need them, tokens and log probabilities.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/generation.h"
#include "model/hyper_parameters.h"
#include "worker/stage/float_buffer.h"
#include "worker/stage/sample_questions.h"
#include "worker/stage/sampler.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_shards.h"

namespace millrace {

// Thread: compute. What it points to outlives it.
class OutputHead {
 public:
  static constexpr uint32_t kMaxLogitRows = StageShards::kMaxLogitRows;

  // RESOURCE_EXHAUSTED: not enough memory.
  static absl::StatusOr<std::unique_ptr<OutputHead>> Create(const HyperParameters& hyper_parameters,
                                                            StageShards& shards);

  // `residual` is [batch.rows(), hidden]. As StageModel::Sample.
  absl::StatusOr<std::vector<SequenceResult>> Sample(const StageBatch& batch,
                                                     absl::Span<const float> residual);

  // [rows.size(), vocabulary], for rows of `residual`; valid until the next call of either function.
  // Errors and REQUIRES as StageShards::Logits. REQUIRES: rows.size() <= kMaxLogitRows, and no more than a
  // batch has.
  absl::StatusOr<absl::Span<const float>> Logits(absl::Span<const uint32_t> rows,
                                                 absl::Span<const float> residual);

  uint64_t bytes() const;

 private:
  OutputHead(const HyperParameters& hyper_parameters, StageShards& shards)
      : shape_(hyper_parameters),
        shards_(shards),
        sampler_(hyper_parameters.vocabulary_size),
        questions_(shards.samples() ? hyper_parameters.vocabulary_size : 0) {}

  static std::vector<SequenceResult> EmptyResults(const StageBatch& batch);
  static std::vector<WantedLogits> FindWanted(const StageBatch& batch, std::vector<SequenceResult>& results);
  // On the device. False: it cannot hold all that is asked.
  absl::StatusOr<bool> SampleOnDevice(absl::Span<const WantedLogits> wanted, absl::Span<const uint32_t> rows);
  void Answer(const WantedLogits& wanted, absl::Span<const float> logits);

  const HyperParameters& shape_;
  StageShards& shards_;
  Sampler sampler_;
  SampleQuestions questions_;  // where the devices sample
  FloatBuffer logits_;         // [kMaxLogitRows, vocabulary]
};

}  // namespace millrace
