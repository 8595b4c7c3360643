// How far a real model on CUDA devices, as they run on the CPU, is from float32: no farther than the CPU's
// int8 path may be (stage_accuracy_test.cc). Needs the model file, named by MILLRACE_TEST_MODEL.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "tests/unit/stage/golden_cases.h"
#include "tests/unit/stage/golden_run.h"
#include "tests/unit/stage/stage_ring.h"
#include "worker/device/cuda/cuda_device_group.h"

namespace millrace::testing {
namespace {

// Prompts with short continuations: a token takes a while.
const std::set<std::string> kPrompts = {"capital", "digits"};

TEST(CudaAccuracyTest, ShortPromptsAreAnsweredAsGoldensAre) {
  ASSERT_NE(GoldenModelPath(), nullptr)
      << "MILLRACE_TEST_MODEL is not set; tests/run.sh sets it to the model file";
  const nlohmann::json peer = ReadGolden("llama_cpp_smollm2.json");
  ASSERT_TRUE(peer.is_object());
  const TestModel model = TestModel::FromFile(GoldenModelPath(), "auto");
  StageRingOptions options{.max_rows = 40, .num_blocks = 16, .shards = 2, .kv_type = KvType::kF16};
  options.record_decodes = false;
  options.make_devices = [](uint32_t shards) {
    CudaDevicesOptions cuda;
    for (uint32_t i = 0; i < shards; ++i) cuda.devices.push_back(static_cast<int>(i));
    cuda.watchdog = absl::ZeroDuration();
    cuda.host_ops = MakeBackend("auto");
    absl::StatusOr<std::unique_ptr<DeviceGroup>> group = MakeCudaDevices(cuda);
    EXPECT_TRUE(group.ok()) << group.status();
    return *std::move(group);
  };
  StageRing ring(model, std::move(options));
  size_t prompts = 0;
  double nll = 0, divergence = 0;
  for (const nlohmann::json& golden : ReadGoldenCases()) {
    if (kPrompts.count(golden["name"].get<std::string>()) == 0) continue;
    const Distance distance = GoldenRun(ring, golden).Measure();
    std::printf("%s: log likelihood %.6f, divergence %.6f, tokens %d of %d\n",
                golden["name"].get<std::string>().c_str(), distance.nll, distance.divergence, distance.agree,
                distance.steps);
    EXPECT_EQ(distance.agree, distance.steps) << golden["name"];
    EXPECT_GT(distance.steps, 0);
    nll += distance.nll;
    divergence += distance.divergence;
    ++prompts;
  }
  ASSERT_EQ(prompts, kPrompts.size());
  for (const char* attention : {"flash", "no_flash"}) {
    EXPECT_LE(nll / static_cast<double>(prompts), peer[attention]["mean_nll_error"].get<double>());
    EXPECT_LE(divergence / static_cast<double>(prompts), peer[attention]["mean_kl"].get<double>());
  }
}

}  // namespace
}  // namespace millrace::testing
