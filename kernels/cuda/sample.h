// Sampling on the device: one block a row. Sets of tokens are prefixes of the order (value falling, id
// rising), given by the value of their last token and how many of equal value are in; they are found by radix
// descent over the bits of the values, eight at a time, counting tokens (top-k) or adding weights (top-p, the
// draw).
#pragma once

#include "kernels/cuda/cuda_queue.h"
#include "kernels/sample.h"

namespace millrace::kernels::cuda {

// So that the weights of all tokens together fit in 64 bits.
inline constexpr size_t kMaxSampleVocabulary = size_t{1} << 19;

size_t SampleBytes(size_t max_rows, size_t vocabulary);
size_t SampleStagingBytes(size_t max_rows);
// REQUIRES: SampleEntries(rows) <= kMaxSampleEntries, vocabulary < kMaxSampleVocabulary.
void Sample(const CudaQueue& queue, const SampleArgs& args);

}  // namespace millrace::kernels::cuda
