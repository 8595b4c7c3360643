// How far the int8 path is from float32 on a real model, and that llama.cpp is no nearer: both against
// tests/golden/smollm2.json, llama.cpp's distances in tests/golden/llama_cpp_smollm2.json, which
// make_llama_cpp_golden.py measured. Needs the model file, named by MILLRACE_TEST_MODEL.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "gtest/gtest.h"
#include "tests/unit/stage/golden_cases.h"
#include "tests/unit/stage/golden_run.h"
#include "tests/unit/stage/stage_ring.h"

namespace millrace::testing {
namespace {

TEST(StageAccuracyTest, EightBitActivationsAreNoFartherFromFloat32ThanLlamaCpp) {
  ASSERT_NE(GoldenModelPath(), nullptr)
      << "MILLRACE_TEST_MODEL is not set; tests/run.sh sets it to the model file";
  const nlohmann::json peer = ReadGolden("llama_cpp_smollm2.json");
  ASSERT_TRUE(peer.is_object());
  TestModel model = TestModel::FromFile(GoldenModelPath(), "auto");
  auto backend = kernels::MakeCpuBackend({.activations = kernels::ActivationType::kInt8});
  ASSERT_TRUE(backend.ok());
  model.backend = *std::move(backend);
  StageRing ring(model, {.max_rows = 128});
  Distance sum;
  int prompts = 0, with_nll = 0;
  for (const nlohmann::json& golden : ReadGoldenCases()) {
    const Distance distance = GoldenRun(ring, golden).Measure();
    sum.nll += distance.nll;
    sum.divergence += distance.divergence;
    sum.steps += distance.steps;
    sum.agree += distance.agree;
    EXPECT_EQ(distance.agree, distance.steps) << golden["name"];
    ++prompts;
    with_nll += golden.contains("nll") ? 1 : 0;
  }
  ASSERT_EQ(prompts, 24);
  const double nll = sum.nll / with_nll, divergence = sum.divergence / prompts;
  std::printf("mean distance: log likelihood %.6f, divergence %.6f, tokens %d of %d\n", nll, divergence,
              sum.agree, sum.steps);
  EXPECT_EQ(sum.steps, 914);
  for (const char* attention : {"flash", "no_flash"}) {
    EXPECT_LE(nll, peer[attention]["mean_nll_error"].get<double>()) << attention;
    EXPECT_LE(divergence, peer[attention]["mean_kl"].get<double>()) << attention;
  }
}

}  // namespace
}  // namespace millrace::testing
