#include "worker/stage/rope_table.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

bool FiniteAndPositive(double value) {
  return std::isfinite(value) && value > 0;
}

absl::Status Check(const HyperParameters& hyper_parameters, absl::Span<const float> divisors) {
  if (!FiniteAndPositive(hyper_parameters.rope_base) ||
      !FiniteAndPositive(hyper_parameters.rope_scale_factor)) {
    return absl::InvalidArgumentError(absl::StrCat("RoPE: base ", hyper_parameters.rope_base,
                                                   ", scale factor ", hyper_parameters.rope_scale_factor,
                                                   ": both must be finite and positive"));
  }
  if (divisors.empty()) return absl::OkStatus();
  if (divisors.size() != hyper_parameters.rope_dims / 2) {
    return absl::InvalidArgumentError(absl::StrCat("rope_freqs.weight: ", divisors.size(),
                                                   " elements; must be ", hyper_parameters.rope_dims / 2,
                                                   ", half the rotated dims"));
  }
  for (size_t i = 0; i < divisors.size(); ++i) {
    if (!FiniteAndPositive(divisors[i])) {
      return absl::InvalidArgumentError(absl::StrCat("rope_freqs.weight: element ", i, " is ", divisors[i],
                                                     "; must be finite and positive"));
    }
  }
  return absl::OkStatus();
}

std::vector<float> Frequencies(const HyperParameters& hyper_parameters, absl::Span<const float> divisors) {
  std::vector<float> frequencies(hyper_parameters.rope_dims / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / hyper_parameters.rope_dims;
    double frequency = std::pow(hyper_parameters.rope_base, -exponent);
    if (hyper_parameters.rope_scaling == RopeScaling::kLinear)
      frequency /= hyper_parameters.rope_scale_factor;
    if (!divisors.empty()) frequency /= divisors[i];
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

}  // namespace

absl::StatusOr<FloatBuffer> MakeRopeTable(const HyperParameters& hyper_parameters,
                                          absl::Span<const float> divisors, uint32_t positions) {
  RETURN_IF_ERROR(Check(hyper_parameters, divisors));
  const std::vector<float> frequencies = Frequencies(hyper_parameters, divisors);
  ASSIGN_OR_RETURN(FloatBuffer table,
                   FloatBuffer::Allocate("RoPE table", {positions, frequencies.size(), 2}));
  float* out = table.data();
  for (uint32_t position = 0; position < positions; ++position) {
    for (float frequency : frequencies) {
      const float angle = static_cast<float>(position) * frequency;
      *out++ = static_cast<float>(std::cos(double{angle}));
      *out++ = static_cast<float>(std::sin(double{angle}));
    }
  }
  return table;
}

}  // namespace millrace
