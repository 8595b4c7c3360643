#include "cli/cluster_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "cli/plan_view.h"

namespace millrace::cli {
namespace {

using ::testing::HasSubstr;

TEST(ClusterFileTest, KnowsGpusByName) {
  const auto cluster = ClusterOfGpus("h100:2,B200,L40S");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_EQ(cluster->workers.size(), 4u);
  EXPECT_EQ(cluster->workers[1].speed->flops_per_second, 989e12);
  EXPECT_EQ(cluster->workers[2].memory_bytes, 180000000000u);
  EXPECT_EQ(cluster->workers[3].speed->bytes_per_second, 864e9);
  for (const char* wrong :
       {"", "H100:", "H100:x", "H100:0", "H100:2:3", ":2", "H100,", "Voodoo:2", "{x: 1}:2"}) {
    EXPECT_EQ(ClusterOfGpus(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

TEST(ClusterFileTest, ReadsGpusFiguresAndProfiles) {
  const auto cluster = ParseCluster(R"(
workers:
  - {gpu: a100-80, count: 2, efficiency: 0.5}
  - {name: big, memory: 64GB, gflops: 400, gb_per_second: 40}
  - memory: 16GiB
    kv_memory: 1GiB
    profile:
      layer_elements: 3.5e6
      overhead_seconds: 1e-6
      layer: [[1, 1, 0, 0.001], [8, 8, 512, 0.002]]
      head: [[1, 1, 0, 0.01]]
link: {latency: 200us, gb_per_second: 1.25}
)",
                                    "c.yaml");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_EQ(cluster->workers.size(), 4u);
  EXPECT_EQ(cluster->workers[1].name, "A100-80");
  EXPECT_EQ(cluster->workers[1].memory_bytes, 80000000000u);
  EXPECT_EQ(cluster->workers[1].speed->flops_per_second, 156e12);
  EXPECT_EQ(cluster->workers[2].name, "big");
  EXPECT_EQ(cluster->workers[2].speed->bytes_per_second, 40e9);
  EXPECT_EQ(cluster->workers[3].kv_memory_bytes, uint64_t{1} << 30);
  ASSERT_TRUE(cluster->workers[3].profile.has_value());
  EXPECT_EQ(cluster->workers[3].profile->layer[1].context, 512u);
  EXPECT_EQ(cluster->workers[3].profile->head[0].seconds, 0.01);
  EXPECT_NEAR(cluster->link_seconds, 200e-6, 1e-12);
  EXPECT_NEAR(cluster->link_bytes_per_second, 1.25e9, 1);
}

TEST(ClusterFileTest, SaysWhereAndWhatIsWrong) {
  struct Case {
    const char* text;
    const char* words;
  };
  const Case cases[] = {
      {"workers:\n  - {gpu: A7}\n", "c.yaml:2:11: unknown gpu 'A7'; known: A100-40"},
      {"workers:\n  - {gpu: L4, speed: 3}\n", "c.yaml:2:15: unknown key 'speed'"},
      {"workers:\n  - {memory: 3GB}\n", "one of: gpu; gflops and gb_per_second; profile"},
      {"workers:\n  - {gpu: L4, gflops: 3, gb_per_second: 3}\n", "one of: gpu"},
      {"workers:\n  - {gflops: 3}\n", "go together"},
      {"workers:\n  - {gflops: nan, gb_per_second: 3}\n", "gflops: expected a number"},
      {"workers:\n  - {gpu: L4, count: 100000}\n", "count: expected a number from 1 to 64"},
      {"workers:\n  - {gpu: L4, count: 40}\n  - {gpu: L4, count: 40}\n", "more than 64 workers"},
      {"workers:\n  - {gpu: L4, memory: lots}\n", "memory: 'lots'"},
      {"workers: []\n", "expected a list of workers"},
      {"workers: 3\n", "expected a list of workers"},
      {"[1, 2]\n", "expected link, workers"},
      {"", "expected link, workers"},
      {"workers: [\n", "c.yaml:2:"},
      {"workers:\n  - {gpu: L4}\nlink: {latency: soon}\n", "c.yaml:3:17: latency"},
      {"workers:\n  - profile: {layer_elements: 1, layer: [[1, 1, 0, -1]], head: [[1, 1, 0, 1]]}\n", "-1 s"},
      {"workers:\n  - profile: {layer_elements: 1, layer: [[1, 1, 0]], head: []}\n", "[rows, sequences"},
      {"workers:\n  - profile: {layer_elements: 1, layer: [[1, 1, 0, 1]]}\n", "head: expected"},
  };
  for (const Case& c : cases) {
    const absl::Status status = ParseCluster(c.text, "c.yaml").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.words)) << c.text;
    EXPECT_EQ(status.message().find('\n'), std::string::npos) << c.text;
  }
  EXPECT_EQ(ReadClusterFile("/nonexistent/c.yaml").status().code(), absl::StatusCode::kNotFound);
}

TEST(ClusterFileTest, WhatIsSavedReadsBackTheSame) {
  PlannedCluster cluster;
  PlannedWorker& worker = cluster.workers.emplace_back();
  worker.name = "10.0.0.1:7000";
  worker.memory_bytes = 123456789;
  worker.kv_memory_bytes = 1000;
  worker.profile =
      WorkerProfile{3538944, {{1, 1, 0, 0.000257663}, {64, 1, 512, 0.00607}}, {{4, 4, 0, 0.0035}}, 1.4e-6};
  cluster.link_seconds = 123e-6;
  cluster.link_bytes_per_second = 2.5e9;
  const std::string path = ::testing::TempDir() + "/cluster_file_test.yaml";
  ASSERT_TRUE(WriteClusterFile(cluster, path).ok());
  const auto read = ReadClusterFile(path);
  std::remove(path.c_str());
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->workers.size(), 1u);
  EXPECT_EQ(read->workers[0].name, "10.0.0.1:7000");
  EXPECT_EQ(read->workers[0].memory_bytes, 123456789u);
  EXPECT_EQ(read->workers[0].kv_memory_bytes, 1000u);
  EXPECT_EQ(read->workers[0].profile->layer_elements, 3538944);
  EXPECT_EQ(read->workers[0].profile->layer[1].seconds, 0.00607);
  EXPECT_EQ(read->workers[0].profile->head[0].rows, 4u);
  EXPECT_NEAR(read->link_seconds, 123e-6, 1e-12);
  EXPECT_NEAR(read->link_bytes_per_second, 2.5e9, 1);
  EXPECT_FALSE(WriteClusterFile(cluster, "/nonexistent/c.yaml").ok());
}

TEST(PlanViewTest, ShowsTheTextbooksFiguresBesideTheExactOnes) {
  PlanRequest request;
  request.shape = *NamedShape("llama-2-7b");
  request.cluster = *ParseCluster("workers: [{gpu: A100-80, count: 2}]", "c");
  request.context_tokens = 4096;
  const auto plan = MakePlan(request);
  ASSERT_TRUE(plan.ok());
  const std::string text = PlanText(request, *plan);
  EXPECT_THAT(text, HasSubstr("about 14 GB"));
  EXPECT_THAT(text, HasSubstr("13.48 GB"));
  EXPECT_THAT(text, HasSubstr("about 2.1 GB (batch 1, 4096 tokens)"));
  EXPECT_THAT(text, HasSubstr("2.0 GiB"));
  EXPECT_THAT(text, HasSubstr("estimated from published"));
  EXPECT_THAT(text, HasSubstr("by formula, not simulated"));
  const std::string json = PlanJson(request, *plan);
  EXPECT_THAT(json, HasSubstr("\"tensor_parallel\":2"));
  EXPECT_THAT(json, HasSubstr("\"weight_bytes\":13476831232"));
  EXPECT_EQ(json.find('\n'), std::string::npos);
}

}  // namespace
}  // namespace millrace::cli
