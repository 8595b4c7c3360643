// Comparing what a kernel wrote with what it should have written.
//
// NaN is never close to anything, so outputs filled with NaN beforehand (Poison) show what a kernel did not
// write.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::testing {

struct Tolerance {
  double absolute = 0;
  double relative = 0;  // of |expected|
};

// |actual[i] - expected[i]| <= tolerance for all i. Fails on a difference in length, on NaN on either side,
// and on infinities that are not equal; names the worst element.
::testing::AssertionResult IsClose(const std::vector<float>& actual, const std::vector<float>& expected,
                                   const Tolerance& tolerance);

// As above, with an absolute tolerance for each element.
::testing::AssertionResult IsClose(const std::vector<float>& actual, const std::vector<float>& expected,
                                   const std::vector<double>& absolute);

// Bit by bit, so that 0 is not -0; fails on NaN on either side.
::testing::AssertionResult IsBitEqual(const std::vector<float>& actual, const std::vector<float>& expected);

// `count` quiet NaNs.
std::vector<float> Poison(size_t count);

}  // namespace millrace::testing
