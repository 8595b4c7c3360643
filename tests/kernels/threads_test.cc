// That ops give the same bits on any number of threads. The work is large enough for every thread to get
// some.
#include <algorithm>
#include <string>
#include <vector>

#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels {
namespace {

using millrace::testing::IsBitEqual;

// More than this machine may have cores, and than some of the shapes below have rows.
const std::vector<size_t> kThreads = {2, 3, 5, 17};

std::unique_ptr<Backend> WithThreads(const std::string& isa, size_t threads) {
  CpuBackendOptions options;
  options.isa = isa;
  options.threads = threads;
  auto backend = MakeCpuBackend(options);
  EXPECT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->threads(), threads);
  return *std::move(backend);
}

// Of what `run` returns for a backend.
template <class Run>
void ExpectSameBits(const std::string& isa, const Run& run) {
  const std::vector<float> alone = run(*WithThreads(isa, 1));
  for (const size_t threads : kThreads) {
    const auto backend = WithThreads(isa, threads);
    // The second time its helpers are awake.
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(IsBitEqual(run(*backend), alone)) << threads << " threads";
  }
}

class ThreadsTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ThreadsTest, MatMul) {
  struct Shape {
    size_t rows, n, k;
  };
  for (const WeightType type : kWeightTypes) {
    for (const Shape& shape : {Shape{1, 1027, 576}, Shape{19, 193, 320}, Shape{70, 17, 512}}) {
      const OwnedWeights weights = RandomWeights(type, shape.n, shape.k / 256 * 256 + 256, 1);
      MatMulCase c;
      c.weights = &weights;
      c.rows = shape.rows;
      c.x = RandomFloats(shape.rows * weights.matrix.columns, 2);
      ExpectSameBits(GetParam(), [&](const Backend& backend) { return RunMatMul(backend, c); });
      c.out = RandomFloats(shape.rows * shape.n, 3);
      ExpectSameBits(GetParam(), [&](const Backend& backend) { return RunMatMul(backend, c); });
    }
  }
}

TEST_P(ThreadsTest, Embed) {
  constexpr size_t kRows = 301, kColumns = 768;
  const OwnedWeights table = RandomWeights(WeightType::kQ8_0, 100, kColumns, 4);
  std::vector<uint32_t> ids;
  for (uint32_t r = 0; r < kRows; ++r) ids.push_back(r * 37 % 100);
  ExpectSameBits(GetParam(), [&](const Backend& backend) {
    GuardedFloats out(kRows * kColumns);
    EmbedArgs args;
    args.ids = ids.data();
    args.rows = kRows;
    args.table = table.matrix;
    args.out = out.data();
    backend.Embed(args);
    EXPECT_TRUE(out.Intact());
    return out.values();
  });
}

TEST_P(ThreadsTest, RmsNorm) {
  constexpr size_t kRows = 301, kColumns = 577;
  GuardedFloats x(RandomFloats(kRows * kColumns, 5)), weight(RandomFloats(kColumns, 6));
  ExpectSameBits(GetParam(), [&](const Backend& backend) {
    GuardedFloats out(kRows * kColumns);
    backend.RmsNorm({x.data(), weight.data(), out.data(), kRows, kColumns, 1e-5f});
    EXPECT_TRUE(x.Intact() && weight.Intact() && out.Intact());
    return out.values();
  });
}

TEST_P(ThreadsTest, SwiGlu) {
  constexpr size_t kCount = 100003;
  GuardedFloats gate(RandomFloats(kCount, 7, 20.0f)), up(RandomFloats(kCount, 8));
  ExpectSameBits(GetParam(), [&](const Backend& backend) {
    GuardedFloats out(kCount);
    backend.SwiGlu({gate.data(), up.data(), out.data(), kCount});
    EXPECT_TRUE(gate.Intact() && up.Intact() && out.Intact());
    return out.values();
  });
}

TEST_P(ThreadsTest, Rope) {
  constexpr size_t kRows = 127, kHeads = 9, kHeadSize = 64, kPositions = 50;
  const std::vector<float> x = RandomFloats(kRows * kHeads * kHeadSize, 9);
  const std::vector<float> cos_sin = RandomFloats(kPositions * kHeadSize, 10);
  std::vector<uint32_t> positions;
  for (uint32_t r = 0; r < kRows; ++r) positions.push_back(r * 17 % kPositions);
  ExpectSameBits(GetParam(), [&](const Backend& backend) {
    GuardedFloats inout(x);
    backend.Rope({inout.data(), positions.data(), kRows, kHeads, kHeadSize, kHeadSize, cos_sin.data()});
    EXPECT_TRUE(inout.Intact());
    return inout.values();
  });
}

TEST_P(ThreadsTest, AddPartials) {
  constexpr size_t kRows = 63, kColumns = 1027;
  const std::vector<float> start = RandomFloats(kRows * kColumns, 11);
  const std::vector<float> a = RandomFloats(kRows * kColumns, 12), b = RandomFloats(kRows * kColumns, 13);
  const std::vector<const float*> partials = {a.data(), b.data(), start.data()};
  ExpectSameBits(GetParam(), [&](const Backend& backend) {
    GuardedFloats out(start);
    AddPartialsArgs args;
    args.partials = partials;
    args.out = out.data();
    args.rows = kRows;
    args.columns = kColumns;
    args.begin = 5;
    args.end = kColumns - 3;
    backend.AddPartials(args);
    EXPECT_TRUE(out.Intact());
    return out.values();
  });
}

// Few long contexts, which threads share by splits, and many rows, which they share by items.
TEST_P(ThreadsTest, StoreKvAndPagedAttention) {
  constexpr size_t kHeads = 6, kKvHeads = 2, kHeadSize = 32, kBlockTokens = 16, kContext = 1600;
  const std::vector<float> x = RandomFloats(kContext * kHeads * kHeadSize, 14);
  std::vector<uint32_t> ids(kContext / kBlockTokens);
  for (uint32_t i = 0; i < ids.size(); ++i) ids[i] = i * 37 % static_cast<uint32_t>(ids.size());
  const std::vector<std::vector<KvSegment>> batches = {{{ids.data(), kContext - 1, 0, 1}},
                                                       {{ids.data(), kContext - 60, 0, 60}},
                                                       {{ids.data(), 900, 0, 1}, {ids.data(), 20, 1, 30}}};
  ExpectSameBits(GetParam(), [&](const Backend& backend) {
    GuardedFloats keys(kContext * kKvHeads * kHeadSize), values(kContext * kKvHeads * kHeadSize);
    PagedKv kv;
    kv.key_blocks = reinterpret_cast<uint8_t*>(keys.data());
    kv.value_blocks = reinterpret_cast<uint8_t*>(values.data());
    kv.block_tokens = kBlockTokens;
    kv.kv_heads = kKvHeads;
    kv.head_size = kHeadSize;
    const KvSegment all{ids.data(), 0, 0, kContext};
    backend.StoreKv({kv, x.data(), x.data(), {&all, 1}});
    GuardedFloats scratch(backend.AttentionScratchFloats(kHeadSize), GuardedFloats::Alignment::kCacheLine);
    std::vector<float> joined;
    for (const std::vector<KvSegment>& batch : batches) {
      const size_t rows = batch.back().first_row + batch.back().rows;
      GuardedFloats out(rows * kHeads * kHeadSize);
      backend.PagedAttention({kv, x.data(), out.data(), batch, kHeads, 0.2f, scratch.data()});
      EXPECT_TRUE(out.Intact() && scratch.Intact() && keys.Intact() && values.Intact());
      const std::vector<float> part = out.values();
      joined.insert(joined.end(), part.begin(), part.end());
    }
    return joined;
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, ThreadsTest, ::testing::ValuesIn(CpuBackends()), ParamName);

TEST(ThreadsOptionsTest, RefusesThreadsAndCoresThatCannotBe) {
  CpuBackendOptions none;
  none.threads = 0;
  EXPECT_EQ(MakeCpuBackend(none).status().code(), absl::StatusCode::kInvalidArgument);
  CpuBackendOptions nowhere;
  nowhere.cores = {-1};
  EXPECT_EQ(MakeCpuBackend(nowhere).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace millrace::kernels
