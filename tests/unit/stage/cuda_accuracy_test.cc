// How far a real model on CUDA devices, as they run on the CPU, is from float32: no farther than the CPU's
// int8 path may be (stage_accuracy_test.cc). Needs the model file, named by MILLRACE_TEST_MODEL.
#include <cstdio>
#include <cstdlib>
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

// A token takes a while: prompts with short continuations, unless MILLRACE_FULL says to take all the time it
// needs.
const std::set<std::string> kShort = {"capital", "digits"};
const std::set<std::string> kShortest = {"digits"};

bool IsFull() {
  return std::getenv("MILLRACE_FULL") != nullptr;
}

std::unique_ptr<DeviceGroup> CudaDevices(uint32_t shards) {
  CudaDevicesOptions cuda;
  for (uint32_t i = 0; i < shards; ++i) cuda.devices.push_back(static_cast<int>(i));
  cuda.watchdog = absl::ZeroDuration();
  cuda.host_ops = MakeBackend("auto");
  absl::StatusOr<std::unique_ptr<DeviceGroup>> group = MakeCudaDevices(cuda);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

struct Sums {
  double nll = 0, divergence = 0;
  size_t prompts = 0;
};

// The golden prompts of these names, all if there are none.
Sums Measure(uint32_t shards, const std::set<std::string>& names) {
  const TestModel model = TestModel::FromFile(GoldenModelPath(), "auto");
  StageRingOptions options{
      .max_rows = 40, .num_blocks = names.empty() ? 136u : 16u, .shards = shards, .kv_type = KvType::kF16};
  options.record_decodes = false;
  options.make_devices = CudaDevices;
  StageRing ring(model, std::move(options));
  Sums sums;
  for (const nlohmann::json& golden : ReadGoldenCases()) {
    const std::string name = golden["name"].get<std::string>();
    if (!names.empty() && names.count(name) == 0) continue;
    const Distance distance = GoldenRun(ring, golden).Measure();
    std::printf("%s: log likelihood %.6f, divergence %.6f, tokens %d of %d\n", name.c_str(), distance.nll,
                distance.divergence, distance.agree, distance.steps);
    std::fflush(stdout);
    EXPECT_EQ(distance.agree, distance.steps) << name;
    EXPECT_GT(distance.steps, 0);
    sums.nll += distance.nll;
    sums.divergence += distance.divergence;
    ++sums.prompts;
  }
  return sums;
}

class CudaAccuracyTest : public ::testing::TestWithParam<uint32_t> {};

INSTANTIATE_TEST_SUITE_P(Shards, CudaAccuracyTest, ::testing::Values(1u, 2u, 3u));

TEST_P(CudaAccuracyTest, PromptsAreAnsweredAsGoldensAre) {
  ASSERT_NE(GoldenModelPath(), nullptr)
      << "MILLRACE_TEST_MODEL is not set; tests/run.sh sets it to the model file";
  const nlohmann::json peer = ReadGolden("llama_cpp_smollm2.json");
  ASSERT_TRUE(peer.is_object());
  // Any number of shards gives the same bits (cuda_stage_test.cc): two answer the most prompts.
  const std::set<std::string> most = IsFull() ? std::set<std::string>() : kShort;
  const std::set<std::string>& names = GetParam() == 2 ? most : IsFull() ? kShort : kShortest;
  const Sums sums = Measure(GetParam(), names);
  ASSERT_GE(sums.prompts, names.empty() ? 20u : names.size());
  const double prompts = static_cast<double>(sums.prompts);
  for (const char* attention : {"flash", "no_flash"}) {
    EXPECT_LE(sums.nll / prompts, peer[attention]["mean_nll_error"].get<double>());
    EXPECT_LE(sums.divergence / prompts, peer[attention]["mean_kl"].get<double>());
  }
}

}  // namespace
}  // namespace millrace::testing
