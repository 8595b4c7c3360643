#include "bench/load/load_window.h"

#include <gtest/gtest.h>

namespace millrace::bench {
namespace {

absl::Time At(double seconds) {
  return absl::UnixEpoch() + absl::Seconds(seconds);
}

// Tokens `count` of a stream, at a time; the record is left as the client leaves it.
void Arrive(LoadWindow& window, StreamRecord& record, int count, double at, const std::string& text = "") {
  v1::TokenDelta delta;
  for (int i = 0; i < count; ++i) delta.add_token_ids(7);
  delta.set_text(text);
  window.OnTokens({record, delta, At(at)});
  record.tokens += static_cast<uint32_t>(count);
  record.last_token = At(at);
}

TEST(LoadWindowTest, CountsTokensAndGaps) {
  LoadWindow window(At(10), {});
  StreamRecord record;
  record.sent = At(11);
  Arrive(window, record, 1, 11.5);
  Arrive(window, record, 1, 11.6);
  Arrive(window, record, 2, 12.0);
  window.OnDone(record, At(12.1), true);
  window.Close(At(20), {});
  const nlohmann::json report = window.ToJson();
  EXPECT_EQ(report["tokens"], 4);
  EXPECT_EQ(report["finished"], 1);
  EXPECT_NEAR(report["seconds"].get<double>(), 10, 1e-9);
  EXPECT_NEAR(report["ttft_ms"]["p50"].get<double>(), 500, 1e-6);
  EXPECT_EQ(report["inter_token_ms"]["n"], 3);
  EXPECT_NEAR(report["inter_token_ms"]["max"].get<double>(), 200, 1e-6);
  EXPECT_NEAR(report["inter_token_ms"]["mean"].get<double>(), 500.0 / 3, 1e-6);
  EXPECT_NEAR(report["request_ms"]["mean"].get<double>(), 1100, 1e-6);
}

TEST(LoadWindowTest, LeavesOutAGapThatBeganBeforeIt) {
  LoadWindow window(At(10), {});
  StreamRecord record;
  record.sent = At(1);
  record.tokens = 5;
  record.last_token = At(9.9);
  Arrive(window, record, 1, 10.1);
  Arrive(window, record, 1, 10.2);
  window.Close(At(11), {});
  const nlohmann::json report = window.ToJson();
  EXPECT_EQ(report["tokens"], 2);
  EXPECT_EQ(report["inter_token_ms"]["n"], 1);
  EXPECT_EQ(report["ttft_ms"]["n"], 0);
}

TEST(LoadWindowTest, CountsWholeStepsOfAllSequencesTogether) {
  LoadWindow window(At(0), {}, 2);
  StreamRecord first;
  StreamRecord second;
  Arrive(window, first, 1, 1);
  Arrive(window, first, 1, 1.5);  // alone: not counted
  Arrive(window, second, 1, 2);   // both decode from here on
  Arrive(window, first, 1, 2.0);  // the same step, after it
  for (int step = 1; step <= 3; ++step) {
    Arrive(window, second, 1, 2 + step);
    Arrive(window, first, 1, 2 + step + 0.1);
  }
  window.OnDone(first, At(5.2), true);
  Arrive(window, second, 1, 6);  // alone again
  window.OnDone(second, At(6.1), true);
  window.Close(At(7), {});
  const nlohmann::json together = window.ToJson()["together"];
  EXPECT_EQ(together["tokens"], 6);
  EXPECT_NEAR(together["seconds"].get<double>(), 3, 1e-9);
}

TEST(LoadWindowTest, KnowsOfNoTogetherWhereNotAllBegan) {
  LoadWindow of_three(At(0), {}, 3);
  LoadWindow of_unknown(At(0), {});
  for (LoadWindow* window : {&of_three, &of_unknown}) {
    StreamRecord first;
    StreamRecord second;
    Arrive(*window, first, 1, 1);
    Arrive(*window, second, 1, 1);
    Arrive(*window, second, 1, 2);
    window->Close(At(3), {});
    EXPECT_EQ(window->ToJson()["together"], nlohmann::json({{"seconds", 0.0}, {"tokens", 0}}));
  }
}

TEST(LoadWindowTest, CountsCharactersNotBytes) {
  LoadWindow window(At(0), {});
  StreamRecord record;
  Arrive(window, record, 1, 1, "a\xC3\xA4\xF0\x9F\x98\x80");
  window.Close(At(2), {});
  EXPECT_EQ(window.ToJson()["characters"], 3);
}

TEST(LoadWindowTest, KeepsWhatTheServerSaid) {
  v1::GetLoadResponse begin, end;
  begin.set_epoch(3);
  end.add_stages()->mutable_busy()->set_seconds(2);
  LoadWindow window(At(0), begin);
  window.Close(At(1), end);
  const nlohmann::json report = window.ToJson();
  EXPECT_EQ(report["load_begin"]["epoch"], "3");
  EXPECT_EQ(report["load_end"]["stages"][0]["busy"], "2s");
}

TEST(DistributionTest, TellsPercentilesOfSortedValues) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const nlohmann::json report = Distribution(values);
  EXPECT_EQ(report["n"], 100);
  EXPECT_EQ(report["mean"], 50.5);
  EXPECT_NEAR(report["p50"].get<double>(), 50, 1);
  EXPECT_NEAR(report["p90"].get<double>(), 90, 1);
  EXPECT_NEAR(report["p99"].get<double>(), 99, 1);
  EXPECT_EQ(report["max"], 100);
  EXPECT_EQ(Distribution({}), nlohmann::json({{"n", 0}}));
}

}  // namespace
}  // namespace millrace::bench
