#include "cli/status_view.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::cli {
namespace {

using ::testing::HasSubstr;

google::protobuf::Duration Millis(int64_t millis) {
  google::protobuf::Duration duration;
  duration.set_seconds(millis / 1000);
  duration.set_nanos(static_cast<int32_t>(millis % 1000 * 1000000));
  return duration;
}

WatchInput Input() {
  WatchInput input;
  input.seconds = 2;
  input.server.set_version("9.9");
  input.server.set_state(v1::GetServerInfoResponse::STATE_SERVING);
  *input.server.mutable_uptime() = Millis(77000);
  input.before.set_generated_tokens_total(100);
  input.before.set_prompt_tokens_total(1000);
  v1::GetLoadResponse& load = input.load;
  load.set_generated_tokens_total(150);
  load.set_prompt_tokens_total(1003);
  load.set_running_requests(3);
  load.set_queued_requests(4);
  load.set_microbatches_in_flight(5);
  load.set_window_bubble_ratio(0.25);
  load.set_bubble_ratio(0.5);
  *load.mutable_window() = Millis(10000);
  *load.mutable_mean_hop() = Millis(3);
  v1::StageLoad* stage = load.add_stages();
  stage->set_first_layer(2);
  stage->set_num_layers(5);
  stage->set_worker("1@host");
  v1::StageWindow* window = stage->mutable_window();
  window->set_rows(1234);
  *window->mutable_busy() = Millis(6000);
  *window->mutable_preempted() = Millis(80);
  *window->mutable_idle()->mutable_no_work() = Millis(4000);
  *window->mutable_idle()->mutable_communication() = Millis(1000);
  *window->mutable_idle()->mutable_too_few_microbatches() = Millis(480);
  *window->mutable_idle()->mutable_imbalance() = Millis(320);
  *window->mutable_idle()->mutable_starved() = Millis(160);
  *window->mutable_idle()->mutable_back_pressured() = Millis(40);
  return input;
}

TEST(StatusViewTest, TheTableHasRatesAndShares) {
  const std::vector<std::string> lines = WatchTable(Input());
  ASSERT_EQ(lines.size(), 9u);
  EXPECT_THAT(lines[0], HasSubstr("serving"));
  EXPECT_THAT(lines[1], HasSubstr("3 running, 4 queued"));
  EXPECT_THAT(lines[2], HasSubstr("25.0 generated, 1.5 prompt"));
  EXPECT_THAT(lines[4], HasSubstr("5 microbatches in flight, mean hop 3.000 ms"));
  EXPECT_THAT(lines[5], HasSubstr("25.0% in the last 10 s, 50.0%"));
  // 6 s busy, 2 s of bubbles, 4 s without work.
  EXPECT_EQ(
      lines[8],
      "0      2-6        50.0%   25.0% |   12.5%    6.0%    4.0%    2.0%    0.5% |    1.0%    123.4  1@host");
  EXPECT_EQ(lines[7].find("worker"), lines[8].find("1@host"));
}

TEST(StatusViewTest, WithoutStagesThereIsNoTable) {
  WatchInput input = Input();
  input.load.clear_stages();
  EXPECT_EQ(WatchTable(input).size(), 6u);
}

TEST(StatusViewTest, ALineHasEachStage) {
  const std::string line = WatchLine(Input());
  EXPECT_THAT(line, HasSubstr("25.0 tokens/s"));
  EXPECT_THAT(line, HasSubstr("stage 0 busy 50.0% bubble 25.0%"));
  EXPECT_EQ(line.find('\n'), std::string::npos);
}

// A restarted server counts from 0 again.
TEST(StatusViewTest, CountersThatFellGiveNoRate) {
  WatchInput input = Input();
  input.before.set_generated_tokens_total(1000000);
  EXPECT_THAT(WatchTable(input)[2], HasSubstr("0.0 generated"));
}

}  // namespace
}  // namespace millrace::cli
