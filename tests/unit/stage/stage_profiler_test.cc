#include "worker/stage/stage_profiler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

class StageProfilerTest : public ::testing::Test {
 protected:
  void Make(const TinyLlamaOptions& options) {
    bytes_ = BuildTinyLlama(options);
    auto file = GgufFile::Parse(bytes_, "tiny");
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    shape_ = *ReadHyperParameters(*file_);
    backend_ = *kernels::MakeCpuBackend({.isa = "auto"});
  }

  absl::StatusOr<WorkerProfile> Measure(uint32_t max_rows, uint32_t context) {
    StageProfilerOptions options;
    options.max_rows = max_rows;
    options.context_tokens = context;
    return MeasureProfile(*file_, shape_, {backend_.get()}, options);
  }

  static const ProfilePoint* Find(const std::vector<ProfilePoint>& points, uint32_t rows, uint32_t sequences,
                                  bool far) {
    for (const ProfilePoint& point : points) {
      if (point.rows == rows && point.sequences == sequences && (point.context > 0) == far) return &point;
    }
    return nullptr;
  }

  std::vector<uint8_t> bytes_;
  std::unique_ptr<GgufFile> file_;
  HyperParameters shape_;
  std::unique_ptr<kernels::Backend> backend_;
};

TEST_F(StageProfilerTest, MeasuresLayersHeadAndContexts) {
  Make({});
  const auto profile = Measure(128, 512);
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(profile->layer_elements, 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96);
  for (uint32_t rows = 1; rows <= 128; rows *= 2) {
    EXPECT_NE(Find(profile->layer, rows, rows, false), nullptr) << rows;
    EXPECT_EQ(Find(profile->head, rows, rows, false) != nullptr, rows <= 32) << rows;
  }
  for (const bool far : {false, true}) {
    EXPECT_NE(Find(profile->layer, 8, 8, far), nullptr);
    EXPECT_NE(Find(profile->layer, 64, 1, far), nullptr);
  }
  for (const auto* points : {&profile->layer, &profile->head}) {
    for (const ProfilePoint& point : *points) {
      EXPECT_TRUE(std::isfinite(point.seconds) && point.seconds > 0) << point.rows;
      EXPECT_LE(point.context + point.rows / point.sequences, 512u);
    }
  }
}

// The time of many rows is that of many rows: 128 take far longer than one, whatever else the machine does.
TEST_F(StageProfilerTest, MoreWorkTakesLonger) {
  TinyLlamaOptions options;
  options.hidden = 256;
  options.ffn = 512;
  Make(options);
  const auto profile = Measure(128, 512);
  ASSERT_TRUE(profile.ok());
  EXPECT_GT(Find(profile->layer, 128, 128, false)->seconds, 4 * Find(profile->layer, 1, 1, false)->seconds);
  EXPECT_GT(Find(profile->layer, 8, 8, true)->seconds, Find(profile->layer, 8, 8, false)->seconds);
}

TEST_F(StageProfilerTest, StaysWithinRowsAndContext) {
  Make({});
  for (const auto& [max_rows, context] :
       {std::pair{1u, 1u}, {5u, 3u}, {128u, 20u}, {3u, 512u}, {4096u, 2u}}) {
    const auto profile = Measure(max_rows, context);
    ASSERT_TRUE(profile.ok()) << profile.status();
    ASSERT_FALSE(profile->layer.empty());
    ASSERT_FALSE(profile->head.empty());
    for (const ProfilePoint& point : profile->layer) {
      EXPECT_LE(point.rows, max_rows);
      EXPECT_LE(point.context + point.rows / point.sequences, context);
    }
  }
}

TEST_F(StageProfilerTest, RefusesSizesOfZero) {
  Make({});
  EXPECT_EQ(Measure(0, 512).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Measure(128, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

// So little time still gives the slope of a layer's cost, and a head.
TEST_F(StageProfilerTest, ABriefProfileHasPointsToStartFrom) {
  Make({});
  StageProfilerOptions options;
  options.max_rows = 128;
  options.context_tokens = 512;
  options.enough = kBriefProfileEnough;
  options.limit = kBriefProfileLimit;
  const auto profile = MeasureProfile(*file_, shape_, {backend_.get()}, options);
  ASSERT_TRUE(profile.ok());
  EXPECT_NE(Find(profile->layer, 1, 1, false), nullptr);
  EXPECT_NE(Find(profile->layer, 2, 2, false), nullptr);
  EXPECT_NE(Find(profile->head, 1, 1, false), nullptr);
}

// A limit that is over at once still gives one point of each kind.
TEST_F(StageProfilerTest, LeavesOutWhatTakesTooLong) {
  Make({});
  StageProfilerOptions options;
  options.max_rows = 128;
  options.context_tokens = 512;
  options.limit = absl::ZeroDuration();
  const auto profile = MeasureProfile(*file_, shape_, {backend_.get()}, options);
  ASSERT_TRUE(profile.ok());
  EXPECT_EQ(profile->layer.size(), 1u);
  EXPECT_EQ(profile->head.size(), 1u);
}

}  // namespace
}  // namespace millrace
