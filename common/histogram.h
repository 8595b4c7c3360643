// Counts of measured values by size, as a plain value that is cheap to copy.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace millrace {

// Bucket i counts values of at most bounds()[i] and more than the bound before; the last one, beyond all
// bounds, the rest. Values are what the bounds are: seconds, for those below.
class Histogram {
 public:
  static constexpr size_t kMaxBounds = 20;

  // `bounds` ascend, are at most kMaxBounds, and outlive every copy of this.
  explicit Histogram(absl::Span<const double> bounds)
      : bounds_(bounds.first(std::min(bounds.size(), kMaxBounds))) {}

  // Negative values and NaN count as 0.
  void Observe(double value) {
    value = value > 0 ? value : 0;
    const size_t bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
    ++counts_[bucket];
    ++count_;
    sum_ += value;
  }

  absl::Span<const double> bounds() const { return bounds_; }
  uint64_t bucket(size_t i) const { return counts_[i]; }  // i <= bounds().size()
  uint64_t count() const { return count_; }
  double sum() const { return sum_; }

 private:
  absl::Span<const double> bounds_;
  std::array<uint64_t, kMaxBounds + 1> counts_{};
  uint64_t count_ = 0;
  double sum_ = 0;
};

// Seconds of a hop; of the gap between two tokens; of a phase of a request.
inline constexpr std::array<double, 15> kHopBounds = {10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3,
                                                      5e-3,  10e-3, 20e-3, 50e-3,  100e-3, 500e-3, 1};
inline constexpr std::array<double, 16> kTokenBounds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075,
                                                        0.1,   0.15,  0.2,   0.3,  0.5,  1,    2,    5};
inline constexpr std::array<double, 18> kRequestBounds = {
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800};

}  // namespace millrace
