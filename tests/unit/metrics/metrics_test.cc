#include "coordinator/metrics/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "coordinator/metrics/metrics_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "prometheus/text_serializer.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

MetricsSnapshot Snapshot() {
  MetricsSnapshot snapshot;
  snapshot.queued_jobs = 3;
  SchedulerLoad& load = snapshot.pipeline.load;
  load.running = 5;
  load.waiting = 7;
  load.in_flight = 2;
  load.blocks_total = 40;
  load.blocks_used = 10;
  load.prompt_tokens = 100;
  load.output_tokens = 200;
  load.preemptions = 4;
  load.prefix_cache_queries = 60;
  load.prefix_cache_hits = 48;
  snapshot.pipeline.stages.resize(2);
  for (int i = 0; i < 2; ++i) {
    StageSnapshot& stage = snapshot.pipeline.stages[i];
    stage.total.busy = absl::Seconds(10 + i);
    stage.total.preempted = absl::Seconds(1 + i);
    stage.total.microbatches = 20 + i;
    for (size_t cause = 0; cause < kNumIdleCauses; ++cause) {
      stage.total.idle.by_cause[cause] = absl::Milliseconds(500 * (cause + 1));
    }
    stage.window.busy = absl::Seconds(3);
    stage.window.idle[IdleCause::kStarved] = absl::Seconds(1);
    stage.window.idle[IdleCause::kNoWork] = absl::Seconds(5);
    stage.activation_bytes_sent = 999;
  }
  snapshot.pipeline.hops.Observe(0.003);
  RequestStats& requests = snapshot.requests;
  requests.stopped = 11;
  requests.length = 12;
  requests.aborted = 13;
  requests.failed = 14;
  requests.first_token.Observe(0.3);
  requests.first_token.Observe(1e6);
  return snapshot;
}

std::string Text(const MetricsSnapshot& snapshot) {
  return prometheus::TextSerializer().Serialize(MakeMetrics(snapshot));
}

TEST(MetricsTest, TellsLoadRequestsAndStages) {
  const std::string text = Text(Snapshot());
  for (const char* line : {"vllm:num_requests_running 5\n",
                           "vllm:num_requests_waiting 10\n",
                           "vllm:kv_cache_usage_perc 0.25\n",
                           "vllm:prompt_tokens_total 100\n",
                           "vllm:generation_tokens_total 200\n",
                           "vllm:num_preemptions_total 4\n",
                           "vllm:request_success_total{finished_reason=\"stop\"} 11\n",
                           "vllm:request_success_total{finished_reason=\"length\"} 12\n",
                           "vllm:request_success_total{finished_reason=\"abort\"} 13\n",
                           "vllm:request_success_total{finished_reason=\"error\"} 14\n",
                           "vllm:time_to_first_token_seconds_count 2\n",
                           "vllm:time_to_first_token_seconds_bucket{le=\"0.25\"} 0\n",
                           "vllm:time_to_first_token_seconds_bucket{le=\"0.5\"} 1\n",
                           "vllm:time_to_first_token_seconds_bucket{le=\"1\"} 1\n",
                           "vllm:time_to_first_token_seconds_bucket{le=\"+Inf\"} 2\n",
                           "vllm:prefix_cache_queries_total 60\n",
                           "vllm:prefix_cache_hits_total 48\n",
                           "microbatches_in_flight 2\n",
                           "stage_busy_seconds_total{stage=\"1\"} 11\n",
                           "stage_preempted_seconds_total{stage=\"0\"} 1\n",
                           "stage_idle_seconds_total{stage=\"0\",cause=\"no_work\"} 0.5\n",
                           "stage_idle_seconds_total{stage=\"1\",cause=\"starved\"} 3\n",
                           "stage_microbatches_total{stage=\"1\"} 21\n",
                           "activation_bytes_total{stage=\"0\"} 999\n",
                           "pipeline_bubble_ratio 0.25\n",
                           "hop_seconds_count 1\n",
                           "hop_seconds_sum 0.003\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_EQ(text.find("activation_bytes_total{stage=\"1\"}"), std::string::npos);
}

TEST(MetricsTest, WithoutARingThereAreNoStages) {
  const std::string text = Text(MetricsSnapshot());
  EXPECT_THAT(text, HasSubstr("vllm:kv_cache_usage_perc 0\n"));
  EXPECT_THAT(text, HasSubstr("pipeline_bubble_ratio 0\n"));
  EXPECT_EQ(text.find("stage=\""), std::string::npos);
}

TEST(MetricsTest, EachFamilyHasAHelpTextAndComesOnce) {
  std::set<std::string> names;
  for (const prometheus::MetricFamily& family : MakeMetrics(Snapshot())) {
    EXPECT_FALSE(family.help.empty()) << family.name;
    EXPECT_TRUE(names.insert(family.name).second) << family.name;
    const bool counter = family.type == prometheus::MetricType::Counter;
    EXPECT_EQ(counter, family.name.size() > 6 && family.name.substr(family.name.size() - 6) == "_total");
  }
}

// What a server at host:port answers to a request for `path`.
std::string Get(const std::string& address, const std::string& path) {
  const int port = std::stoi(address.substr(address.rfind(':') + 1));
  sockaddr_in peer{};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(static_cast<uint16_t>(port));
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof peer) == 0) {
    const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n = 0; (n = read(fd, buffer, sizeof buffer)) > 0;) answer.append(buffer, n);
  }
  close(fd);
  return answer;
}

TEST(MetricsServerTest, AnswersWithWhatTheSourceSays) {
  const auto server = MetricsServer::Start("127.0.0.1:0", Snapshot);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string answer = Get((*server)->address(), "/metrics");
  EXPECT_THAT(answer, HasSubstr("200 OK"));
  EXPECT_THAT(answer, HasSubstr("stage_busy_seconds_total{stage=\"1\"} 11"));
  EXPECT_THAT(Get((*server)->address(), "/"), HasSubstr("404"));
}

TEST(MetricsServerTest, APortInUseIsOneLineThatNamesTheFlag) {
  const auto first = MetricsServer::Start("localhost:0", Snapshot);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = MetricsServer::Start((*first)->address(), Snapshot);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(second.status().message(), absl::StrCat("cannot listen on --metrics ", (*first)->address(),
                                                    ": the port is in use, or not an address of this host"));
}

TEST(MetricsServerTest, NamesOfHostsAreRefused) {
  const auto server = MetricsServer::Start("somewhere.example:1", Snapshot);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("--metrics"));
}

}  // namespace
}  // namespace millrace
