// What the flags of the programs mean together.
#include <string>
#include <utility>
#include <vector>

#include "common/options.h"
#include "coordinator/coordinator.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/control/worker.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<CoordinatorOptions> ParseCoordinator(const std::vector<std::string>& args,
                                                    bool with_secret = true) {
  CoordinatorFlags flags;
  OptionSet set("prog", "", "");
  flags.Declare(set, with_secret);
  const absl::Status status = set.Parse(args, nullptr).status();
  if (!status.ok()) return status;
  return flags.Finish();
}

absl::StatusOr<WorkerOptions> ParseWorker(const std::vector<std::string>& args) {
  WorkerFlags flags;
  OptionSet set("prog", "", "");
  flags.DeclareJoin(set);
  flags.DeclareLocal(set);
  const absl::Status status = set.Parse(args, nullptr).status();
  if (!status.ok()) return status;
  return flags.Finish();
}

TEST(CoordinatorFlagsTest, HasDefaultsForAllButTheModel) {
  const auto options = ParseCoordinator({"--model", "m.gguf"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->model, "m.gguf");
  EXPECT_EQ(options->stages, 1u);
  EXPECT_EQ(options->max_in_flight, 8u);
  EXPECT_EQ(options->max_rows, 128u);
  EXPECT_EQ(options->block_tokens, 16u);
  EXPECT_EQ(options->listen, "127.0.0.1:50051");
  EXPECT_EQ(options->cluster_listen, "");
}

TEST(CoordinatorFlagsTest, TakesEveryNumber) {
  const auto options = ParseCoordinator({"--model",
                                         "m",
                                         "--stages",
                                         "3",
                                         "--max-in-flight",
                                         "5",
                                         "--max-rows",
                                         "64",
                                         "--kv-block-tokens",
                                         "32",
                                         "--context",
                                         "77",
                                         "--max-running",
                                         "9",
                                         "--max-queued",
                                         "10",
                                         "--max-input",
                                         "2MiB",
                                         "--grace",
                                         "3",
                                         "--worker-timeout",
                                         "4s",
                                         "--cluster-listen",
                                         "0.0.0.0:1",
                                         "--join-secret-file",
                                         "s"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->stages, 3u);
  EXPECT_EQ(options->max_in_flight, 5u);
  EXPECT_EQ(options->max_rows, 64u);
  EXPECT_EQ(options->block_tokens, 32u);
  EXPECT_EQ(options->context_tokens, 77u);
  EXPECT_EQ(options->max_running, 9u);
  EXPECT_EQ(options->max_queued, 10u);
  EXPECT_EQ(options->max_input_bytes, uint64_t{2} << 20);
  EXPECT_EQ(options->grace, absl::Seconds(3));
  EXPECT_EQ(options->worker_timeout, absl::Seconds(4));
  EXPECT_EQ(options->cluster_listen, "0.0.0.0:1");
  EXPECT_EQ(options->join_secret_file, "s");
}

TEST(CoordinatorFlagsTest, TakesHowToBatch) {
  const auto standard = ParseCoordinator({"--model", "m"});
  ASSERT_TRUE(standard.ok()) << standard.status();
  EXPECT_FALSE(standard->static_batching);
  EXPECT_EQ(standard->workload.prompt_tokens, 0u);
  EXPECT_EQ(standard->inter_token_goal, absl::ZeroDuration());
  const auto options = ParseCoordinator(
      {"--model", "m", "--batching", "static", "--inter-token-goal", "150ms", "--workload", "528:136"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_TRUE(options->static_batching);
  EXPECT_EQ(options->workload.prompt_tokens, 528u);
  EXPECT_EQ(options->workload.output_tokens, 136u);
  EXPECT_EQ(options->inter_token_goal, absl::Milliseconds(150));
}

TEST(CoordinatorFlagsTest, TakesWhatAllWorkersComputeWith) {
  const auto numeric = [](const std::vector<std::string>& args) {
    std::vector<std::string> all = {"--model", "m"};
    all.insert(all.end(), args.begin(), args.end());
    const auto options = ParseCoordinator(all);
    EXPECT_TRUE(options.ok()) << options.status();
    return options->numeric;
  };
  EXPECT_EQ(numeric({}), (NumericChoice{ActivationType::kInt8, KvType::kF16}));
  EXPECT_EQ(numeric({"--activations", "f32"}), (NumericChoice{ActivationType::kF32, KvType::kF32}));
  EXPECT_EQ(numeric({"--activations", "int8"}), (NumericChoice{ActivationType::kInt8, KvType::kF16}));
  EXPECT_EQ(numeric({"--activations", "f32", "--kv-type", "int8"}),
            (NumericChoice{ActivationType::kF32, KvType::kI8}));
}

TEST(CoordinatorFlagsTest, TakesTheStagesFromTheLayers) {
  const auto options = ParseCoordinator({"--model", "m", "--layers", "10,11,9"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->stages, 3u);
  EXPECT_EQ(options->max_in_flight, 16u);
  EXPECT_EQ(ParseCoordinator({"--model", "m", "--layers", "10,11", "--stages", "3"})->stages, 3u);
}

TEST(CoordinatorFlagsTest, AllowsFewerMicrobatchesThanStagesForComparisons) {
  const auto options = ParseCoordinator({"--model", "m", "--stages", "4", "--max-in-flight", "1"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->max_in_flight, 1u);
}

TEST(CoordinatorFlagsTest, RefusesWhatDoesNotFitTogether) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--stages", "1"}, "--model PATH is required"},
      {{"--model", "m", "--listen", "50051"}, "--listen: '50051' is not HOST:PORT"},
      {{"--model", "m", "--listen", ""}, "--listen: ''"},
      {{"--model", "m", "--cluster-listen", "x"}, "--cluster-listen: 'x'"},
      {{"--model", "m", "--kv-block-tokens", "24"}, "--kv-block-tokens: 24 is not a multiple of 16"},
      {{"--model", "m", "--worker-timeout", "999ms"}, "--worker-timeout: at least 1s"},
      {{"--model", "m", "--max-input", "65MiB"}, "--max-input: at most 64MiB"},
      {{"--model", "m", "--workload", "500"},
       "--workload: '500' is not PROMPT:OUTPUT in tokens, such as 500:100"},
      {{"--model", "m", "--workload", "5:0"},
       "--workload: '5:0' is not PROMPT:OUTPUT in tokens, such as 500:100"},
      {{"--model", "m", "--activations", "int4"}, "--activations: 'int4' is not int8 or f32"},
      {{"--model", "m", "--kv-type", "f64"}, "--kv-type: 'f64' is not auto, f32, f16 or int8"},
      {{"--model", "m", "--batching", "eager"}, "--batching: 'eager' is not inflight or static"},
      {{"--model", "m", "--max-rows", "0"}, "--max-rows: '0'"},
  };
  for (const auto& [args, why] : cases) {
    const absl::Status status = ParseCoordinator(args).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  }
}

TEST(CoordinatorFlagsTest, HasNoSecretFileUnderMpi) {
  EXPECT_EQ(ParseCoordinator({"--model", "m", "--join-secret-file", "s"}, false).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(WorkerFlagsTest, TakesEveryFlag) {
  const auto options = ParseWorker({"--coordinator",
                                    "c:1",
                                    "--listen",
                                    "0.0.0.0:0",
                                    "--advertise",
                                    "me",
                                    "--model",
                                    "m",
                                    "--stage",
                                    "2",
                                    "--join-secret-file",
                                    "s",
                                    "--isa",
                                    "avx2",
                                    "--kv-memory",
                                    "3GiB",
                                    "--join-timeout",
                                    "5",
                                    "--unix-sockets",
                                    "off",
                                    "--threads",
                                    "3",
                                    "--pin-threads",
                                    "--backend",
                                    "cuda",
                                    "--devices",
                                    "4,5",
                                    "--tensor-parallel",
                                    "2",
                                    "--collective",
                                    "allreduce",
                                    "--watchdog",
                                    "5s"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->coordinator, "c:1");
  EXPECT_EQ(options->listen, "0.0.0.0:0");
  EXPECT_EQ(options->advertise, "me");
  EXPECT_EQ(options->model, "m");
  EXPECT_EQ(options->stage, std::optional<uint32_t>(2));
  EXPECT_EQ(options->join_secret_file, "s");
  EXPECT_EQ(options->backends.isa, "avx2");
  EXPECT_EQ(options->backends.threads, 3);
  EXPECT_EQ(options->backends.backend, "cuda");
  EXPECT_EQ(options->backends.cuda_devices, (std::vector<int64_t>{4, 5}));
  EXPECT_EQ(options->backends.shards, 2);
  EXPECT_EQ(options->backends.collective, "allreduce");
  EXPECT_EQ(options->backends.watchdog, absl::Seconds(5));
  EXPECT_TRUE(options->backends.pin_threads);
  EXPECT_EQ(options->kv_memory_bytes, uint64_t{3} << 30);
  EXPECT_EQ(options->join_timeout, absl::Seconds(5));
  EXPECT_EQ(options->unix_sockets, "off");
}

TEST(WorkerFlagsTest, TakesAnyStageUnlessOneIsNamed) {
  EXPECT_FALSE(ParseWorker({"--coordinator", "c:1"})->stage.has_value());
  EXPECT_EQ(ParseWorker({"--coordinator", "c:1", "--stage", "0"})->stage, std::optional<uint32_t>(0));
}

TEST(WorkerFlagsTest, RefusesWrongAddresses) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "--coordinator HOST:PORT is required"},
      {{"--coordinator", "c"}, "--coordinator: 'c' is not HOST:PORT"},
      {{"--coordinator", "c:1", "--listen", "here"}, "--listen: 'here' is not HOST:PORT"},
      {{"--coordinator", "c:1", "--stage", "-2"}, "--stage: '-2'"},
      {{"--coordinator", "c:1", "--threads", "-1"}, "--threads: '-1'"},
      {{"--coordinator", "c:1", "--unix-sockets", "on"}, "--unix-sockets: 'on' is not auto or off"},
      {{"--coordinator", "c:1", "--backend", "gpu"}, "--backend: 'gpu' is not auto, cpu or cuda"},
      {{"--coordinator", "c:1", "--devices", "-1"}, "--devices: '-1'"},
      {{"--coordinator", "c:1", "--devices", "0,1"}, "--devices: 2 devices for 1 shards"},
      {{"--coordinator", "c:1", "--watchdog", "0"}, "--watchdog: a time above 0"},
  };
  for (const auto& [args, why] : cases) {
    const absl::Status status = ParseWorker(args).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  }
}

}  // namespace
}  // namespace millrace
