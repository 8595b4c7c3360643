#include "bench/load/workload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace millrace::bench {
namespace {

WorkloadOptions SomeOptions() {
  WorkloadOptions options;
  options.prompt_tokens = {3, 9};
  options.output_tokens = {10, 40};
  options.vocabulary_size = 500;
  return options;
}

TEST(ParseRangeTest, ReadsOneNumberOrTwo) {
  EXPECT_EQ(ParseRange("128")->low, 128u);
  EXPECT_EQ(ParseRange("128")->high, 128u);
  EXPECT_EQ(ParseRange("32-1024")->low, 32u);
  EXPECT_EQ(ParseRange("32-1024")->high, 1024u);
}

TEST(ParseRangeTest, RefusesWhatIsNoRange) {
  for (const char* text : {"", "0", "9-3", "-3", "3-", "1-2-3", "x", "2000000"}) {
    EXPECT_EQ(ParseRange(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(WorkloadTest, StaysInItsRangesAndTakesNoControlToken) {
  Workload workload(SomeOptions());
  std::set<uint32_t> lengths, outputs;
  for (int i = 0; i < 300; ++i) {
    const v1::GenerateRequest request = workload.Next();
    lengths.insert(static_cast<uint32_t>(request.token_ids().ids_size()));
    outputs.insert(request.stop().max_tokens());
    for (const uint32_t id : request.token_ids().ids()) {
      ASSERT_GE(id, kFirstOrdinaryId);
      ASSERT_LT(id, 500u);
    }
    EXPECT_TRUE(request.stop().ignore_eos());
    EXPECT_EQ(request.sampling().temperature(), 0);
  }
  EXPECT_EQ(*lengths.begin(), 3u);
  EXPECT_EQ(*lengths.rbegin(), 9u);
  EXPECT_EQ(*outputs.begin(), 10u);
  EXPECT_EQ(*outputs.rbegin(), 40u);
}

TEST(WorkloadTest, IsAFunctionOfTheSeed) {
  WorkloadOptions other = SomeOptions();
  other.seed = 2;
  Workload a(SomeOptions()), b(SomeOptions()), c(other);
  const std::string first = a.Next().SerializeAsString();
  EXPECT_EQ(first, b.Next().SerializeAsString());
  EXPECT_NE(first, c.Next().SerializeAsString());
}

TEST(WorkloadTest, MakesTheShareOfLongOnesThatWasAskedFor) {
  WorkloadOptions options = SomeOptions();
  options.long_share = 0.2;
  Workload workload(options);
  int longest = 0;
  for (int i = 0; i < 1000; ++i) {
    const uint32_t tokens = workload.Next().stop().max_tokens();
    ASSERT_TRUE(tokens == 10 || tokens == 40) << tokens;
    longest += tokens == 40;
  }
  EXPECT_NEAR(longest, 200, 50);
}

TEST(WorkloadTest, TakesTextsInTurn) {
  WorkloadOptions options = SomeOptions();
  options.texts = {"a", "b"};
  Workload workload(options);
  EXPECT_EQ(workload.Next().text(), "a");
  EXPECT_EQ(workload.Next().text(), "b");
  EXPECT_EQ(workload.Next().text(), "a");
}

TEST(WorkloadTest, ArrivesAtTheRateOnAverage) {
  Workload workload(SomeOptions());
  double sum = 0;
  for (int i = 0; i < 10000; ++i) sum += workload.NextGap(4);
  EXPECT_NEAR(sum / 10000, 0.25, 0.02);
}

}  // namespace
}  // namespace millrace::bench
