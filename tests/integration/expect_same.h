// Comparing what requests came to, bit by bit.
#pragma once

#include <vector>

#include "tests/integration/in_memory_ring.h"

namespace millrace::testing {

// Same tokens, and log probabilities of the same bits. NaN equals only the same NaN.
void ExpectSameBits(const std::vector<TokenLogprobs>& a, const std::vector<TokenLogprobs>& b);

// The same of all of an outcome that was OK. What the prefix cache found is left out.
void ExpectSame(const SequenceOutcome& expected, const SequenceOutcome& actual);

}  // namespace millrace::testing
