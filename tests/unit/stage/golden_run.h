// How far a stage is from golden answers.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "tests/unit/stage/stage_ring.h"

namespace millrace::testing {

struct Distance {
  double nll = 0;         // of the mean negative log likelihood of the prompt
  double divergence = 0;  // after the prompt, over golden's tokens
  int steps = 0;          // golden tokens with a margin above 0.5
  int agree = 0;          // that are the most likely here, too
};

// One prompt and golden's continuation of it.
class GoldenRun {
 public:
  GoldenRun(StageRing& ring, const nlohmann::json& golden);
  Distance Measure();

 private:
  // Runs positions [first, end); gives the rows of the last microbatch.
  uint32_t Prefill(uint32_t first, uint32_t end);

  StageRing& ring_;
  const nlohmann::json& golden_;
  TestSequence sequence_;
  uint32_t prompt_ = 0;
  std::vector<TokenLogprobs> logprobs_;
};

}  // namespace millrace::testing
