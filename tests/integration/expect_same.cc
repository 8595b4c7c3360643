#include "tests/integration/expect_same.h"

#include <gtest/gtest.h>

#include <cstring>

namespace millrace::testing {

void ExpectSameBits(const std::vector<TokenLogprobs>& a, const std::vector<TokenLogprobs>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].token, b[i].token) << i;
    EXPECT_EQ(std::memcmp(&a[i].logprob, &b[i].logprob, sizeof(float)), 0) << i;
    ASSERT_EQ(a[i].top.size(), b[i].top.size()) << i;
    for (size_t k = 0; k < a[i].top.size(); ++k) {
      EXPECT_EQ(a[i].top[k].first, b[i].top[k].first) << i;
      EXPECT_EQ(std::memcmp(&a[i].top[k].second, &b[i].top[k].second, sizeof(float)), 0) << i;
    }
  }
}

void ExpectSame(const SequenceOutcome& expected, const SequenceOutcome& actual) {
  EXPECT_TRUE(actual.status.ok()) << actual.status;
  EXPECT_EQ(expected.tokens, actual.tokens);
  EXPECT_EQ(expected.reason, actual.reason);
  ExpectSameBits(expected.logprobs, actual.logprobs);
  ExpectSameBits(expected.prompt_logprobs, actual.prompt_logprobs);
}

}  // namespace millrace::testing
