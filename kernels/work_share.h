// Which part of an op's work one thread does.
#pragma once

#include <cstddef>

namespace millrace::kernels {

// Part `index` of `count`. Results do not depend on how work is shared: a result is computed wholly by one
// part, or from partial results that are cut at fixed places.
struct WorkShare {
  size_t index = 0;
  size_t count = 1;

  struct Range {
    size_t begin = 0;
    size_t end = 0;
  };
  // This part of [0, n), cut at multiples of `unit`; parts differ by at most one unit, and may be empty.
  Range Of(size_t n, size_t unit = 1) const {
    const size_t units = (n + unit - 1) / unit;
    const size_t begin = units * index / count * unit;
    const size_t end = units * (index + 1) / count * unit;
    return {begin < n ? begin : n, end < n ? end : n};
  }
};

}  // namespace millrace::kernels
