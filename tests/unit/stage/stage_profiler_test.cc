#include "worker/stage/stage_profiler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/testing/tiny_llama.h"
#include "worker/device/cpu/host_devices.h"

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
    HostDevices devices({backend_.get()});
    return MeasureProfile(*file_, shape_, devices, options);
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

// Counts the multiplications of the ops that it passes on, so that what they "take" is the same on every
// machine.
class CountingBackend final : public kernels::Backend {
 public:
  explicit CountingBackend(const kernels::Backend& inner) : inner_(inner) {}
  int64_t work() const { return work_; }

  std::string numeric_class() const override { return inner_.numeric_class(); }
  std::string name() const override { return inner_.name(); }
  size_t threads() const override { return inner_.threads(); }
  size_t PackedBytes(const kernels::WeightMatrix& weights) const override {
    return inner_.PackedBytes(weights);
  }
  kernels::WeightMatrix Pack(const kernels::WeightMatrix& weights, uint8_t* to) const override {
    return inner_.Pack(weights, to);
  }
  size_t MatMulScratchFloats(size_t max_rows, size_t max_columns) const override {
    return inner_.MatMulScratchFloats(max_rows, max_columns);
  }
  size_t AttentionScratchFloats(size_t head_size) const override {
    return inner_.AttentionScratchFloats(head_size);
  }
  size_t MatMulInputBytes(size_t max_rows, size_t columns) const override {
    return inner_.MatMulInputBytes(max_rows, columns);
  }
  kernels::MatMulInput PrepareInput(const kernels::PrepareInputArgs& args) const override {
    return inner_.PrepareInput(args);
  }
  void Embed(const kernels::EmbedArgs& args) const override { inner_.Embed(args); }
  void RmsNorm(const kernels::RmsNormArgs& args) const override { inner_.RmsNorm(args); }
  void MatMul(const kernels::MatMulArgs& args) const override {
    work_ += static_cast<int64_t>(args.x.rows * args.weights.rows * args.weights.columns);
    inner_.MatMul(args);
  }
  void AddPartials(const kernels::AddPartialsArgs& args) const override { inner_.AddPartials(args); }
  void Rope(const kernels::RopeArgs& args) const override { inner_.Rope(args); }
  void StoreKv(const kernels::StoreKvArgs& args) const override { inner_.StoreKv(args); }
  void PagedAttention(const kernels::PagedAttentionArgs& args) const override {
    for (const kernels::KvSegment& segment : args.segments) {
      work_ += static_cast<int64_t>(2 * args.heads * args.kv.head_size * segment.rows *
                                    (segment.first_position + segment.rows));
    }
    inner_.PagedAttention(args);
  }
  void SwiGlu(const kernels::SwiGluArgs& args) const override { inner_.SwiGlu(args); }

 private:
  const kernels::Backend& inner_;
  mutable int64_t work_ = 0;  // in nanoseconds: one each
};

TEST_F(StageProfilerTest, MoreWorkTakesLonger) {
  Make({});
  const CountingBackend counting(*backend_);
  StageProfilerOptions options;
  options.max_rows = 128;
  options.context_tokens = 512;
  options.nanos = [&] { return counting.work(); };
  HostDevices devices({&counting});
  const auto profile = MeasureProfile(*file_, shape_, devices, options);
  ASSERT_TRUE(profile.ok()) << profile.status();
  const double one = Find(profile->layer, 1, 1, false)->seconds;
  EXPECT_NEAR(Find(profile->layer, 128, 128, false)->seconds, 128 * one, 1e-12);
  const ProfilePoint& far = *Find(profile->layer, 8, 8, true);
  EXPECT_NEAR(far.seconds, 8 * one + 8e-9 * far.context * 2 * shape_.num_heads * shape_.head_size, 1e-12);
  EXPECT_NEAR(Find(profile->head, 4, 4, false)->seconds, 4e-9 * shape_.vocabulary_size * shape_.hidden_size,
              1e-12);
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
  HostDevices devices({backend_.get()});
  const auto profile = MeasureProfile(*file_, shape_, devices, options);
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
  HostDevices devices({backend_.get()});
  const auto profile = MeasureProfile(*file_, shape_, devices, options);
  ASSERT_TRUE(profile.ok());
  EXPECT_EQ(profile->layer.size(), 1u);
  EXPECT_EQ(profile->head.size(), 1u);
}

}  // namespace
}  // namespace millrace
