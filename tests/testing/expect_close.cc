#include "tests/testing/expect_close.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace millrace::testing {
namespace {

// How far beyond its tolerance an element is: at most 0 when close; infinity for what no tolerance allows.
double Excess(float actual, float expected, double tolerance) {
  if (std::isnan(actual) || std::isnan(expected) || std::isnan(tolerance)) {
    return std::numeric_limits<double>::infinity();
  }
  if (std::isinf(actual) || std::isinf(expected)) {
    return actual == expected ? 0 : std::numeric_limits<double>::infinity();
  }
  return std::fabs(static_cast<double>(actual) - static_cast<double>(expected)) - tolerance;
}

::testing::AssertionResult LengthsDiffer(size_t actual, size_t expected) {
  return ::testing::AssertionFailure() << "lengths differ: got " << actual << ", expected " << expected;
}

}  // namespace

::testing::AssertionResult IsClose(const std::vector<float>& actual, const std::vector<float>& expected,
                                   const std::vector<double>& absolute) {
  if (actual.size() != expected.size()) return LengthsDiffer(actual.size(), expected.size());
  if (absolute.size() != expected.size()) return LengthsDiffer(absolute.size(), expected.size());
  size_t wrong = 0;
  size_t worst = 0;
  double most = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double excess = Excess(actual[i], expected[i], absolute[i]);
    if (!(excess <= 0)) {
      ++wrong;
      if (excess > most) {
        most = excess;
        worst = i;
      }
    }
  }
  if (wrong == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << wrong << " of " << expected.size() << " elements are off, worst [" << worst << "]: got "
         << actual[worst] << ", expected " << expected[worst] << ", tolerance " << absolute[worst];
}

::testing::AssertionResult IsClose(const std::vector<float>& actual, const std::vector<float>& expected,
                                   const Tolerance& tolerance) {
  std::vector<double> absolute(expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const double relative = std::isinf(expected[i]) ? 0 : tolerance.relative * std::fabs(expected[i]);
    absolute[i] = tolerance.absolute + relative;
  }
  return IsClose(actual, expected, absolute);
}

::testing::AssertionResult IsBitEqual(const std::vector<float>& actual, const std::vector<float>& expected) {
  if (actual.size() != expected.size()) return LengthsDiffer(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool nan = std::isnan(actual[i]) || std::isnan(expected[i]);
    if (nan || std::memcmp(&actual[i], &expected[i], sizeof(float)) != 0) {
      return ::testing::AssertionFailure() << "bits differ at [" << i << "]: got " << std::hexfloat
                                           << actual[i] << ", expected " << expected[i];
    }
  }
  return ::testing::AssertionSuccess();
}

std::vector<float> Poison(size_t count) {
  return std::vector<float>(count, std::numeric_limits<float>::quiet_NaN());
}

}  // namespace millrace::testing
