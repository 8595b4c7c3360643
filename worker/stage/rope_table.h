// Cosines and sines of the rotary position embedding, for every position a stage can meet.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/hyper_parameters.h"
#include "worker/stage/float_buffer.h"

namespace millrace {

// [positions, rope_dims / 2, 2]: cosine and sine of position / scale * base^(-2i / rope_dims) / divisors[i],
// as kernels::RopeArgs takes it. Su et al., arXiv 2104.09864; linear scaling: Chen et al., arXiv 2306.15595;
// `divisors` is the tensor rope_freqs.weight, empty if the model has none. Frequency and angle are rounded to
// float where transformers rounds them, cosine and sine are those of the rounded angle. INVALID_ARGUMENT:
// divisors of another size than rope_dims / 2, or not finite and positive; base or scale not so.
// RESOURCE_EXHAUSTED: not enough memory.
absl::StatusOr<FloatBuffer> MakeRopeTable(const HyperParameters& hyper_parameters,
                                          absl::Span<const float> divisors, uint32_t positions);

}  // namespace millrace
