// Products by cuBLASLt: which algorithm is used, and what happens where none can be trusted.
#include "kernels/cuda/cublas_lt.h"

#include "cuda_on_cpu/cublas_lt.h"
#include "cuda_on_cpu/runtime.h"
#include "gmock/gmock.h"
#include "kernels/cuda/matmul_float.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/kernels/kernel_testing.h"
#include "tests/testing/expect_close.h"

namespace millrace::kernels::cuda {
namespace {

using cuda_on_cpu::CublasLtAlgorithm;
using cuda_on_cpu::CublasLtFault;
using millrace::testing::IsBitEqual;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kN = 36;
constexpr size_t kK = 70;

TEST(TestedRowsTest, CutsIntoAtMostThreeUpToTheLargest) {
  for (size_t rows = 1; rows <= kMaxTestedRows; ++rows) {
    size_t calls = 0;
    for (size_t left = rows; left > 0; ++calls) {
      const size_t part = TestedRows(left);
      ASSERT_TRUE(part > 0 && part <= left && TestedRows(part) == part) << rows;
      left -= part;
    }
    EXPECT_LE(calls, 3) << rows;
  }
  EXPECT_EQ(TestedRows(10 * kMaxTestedRows), kMaxTestedRows);
}

class CublasLtTest : public ::testing::TestWithParam<WeightType> {
 protected:
  CublasLtTest()
      : weights_(RandomWeights(GetParam(), kN, kK, 1)), packed_(PackedBytesFloat(weights_.matrix)) {
    std::string why;
    products_ = CublasProducts::Make(&why);
    EXPECT_NE(products_, nullptr) << why;
    queue_.UseCublas(products_.get());
  }
  ~CublasLtTest() override {
    for (const auto algorithm :
         {CublasLtAlgorithm::kRising, CublasLtAlgorithm::kInterleaved, CublasLtAlgorithm::kSplit}) {
      cuda_on_cpu::SetCublasLtFault(algorithm, CublasLtFault::kNone);
    }
    cuda_on_cpu::SetCublasLtOffersNothing(false);
  }

  void Pack() { matrix_ = PackFloat(queue_, weights_.matrix, packed_.data()); }

  std::vector<float> RunOn(const CudaQueue& queue, const std::vector<float>& x,
                           const std::vector<uint32_t>& segment_ends = {}) {
    const size_t rows = x.size() / kK;
    const DeviceArray<float> in(x), scratch(MatMulFloatScratchFloats(rows, kK));
    const DeviceArray<float> out(rows * kN);
    MatMulArgs args;
    args.x.x = in.data();
    args.x.rows = rows;
    args.x.columns = kK;
    args.weights = matrix_;
    args.out = out.data();
    args.scratch = scratch.data();
    args.segment_ends = segment_ends;
    MatMulFloat(queue, args);
    device_.Wait();
    EXPECT_TRUE(in.Intact() && scratch.Intact() && out.Intact() && packed_.Intact());
    return out.values();
  }
  std::vector<float> RunOn(const std::vector<float>& x) { return RunOn(queue_, x); }
  std::vector<float> RunOurs(const std::vector<float>& x) { return RunOn(device_.queue(), x); }

  // Numbers of rows that are tested, and some that are cut into up to three and more calls.
  void ExpectSameBitsForAllNumbersOfRows() {
    const std::vector<float> x = RandomFloats(300 * kK, 2);
    const std::vector<float> whole = RunOn(x);
    for (const size_t rows : {1, 8, 9, 37, 129}) {
      EXPECT_TRUE(IsBitEqual(
          RunOn(std::vector<float>(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(rows * kK))),
          std::vector<float>(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(rows * kN))))
          << rows;
    }
    EXPECT_TRUE(IsBitEqual(RunOn(std::vector<float>(x.end() - kK, x.end())),
                           std::vector<float>(whole.end() - kN, whole.end())));
    // Other orders of adding: close, and not equal.
    const std::vector<float> ours = RunOurs(x);
    EXPECT_TRUE(millrace::testing::IsClose(whole, ours, millrace::testing::Tolerance{kK * 0x1p-20, 0}));
  }

  TestDevice device_;
  CudaQueue queue_{device_.stream(), TraitsOfAllKinds().back()};
  std::unique_ptr<CublasProducts> products_;
  const OwnedWeights weights_;
  DeviceBytes packed_;
  WeightMatrix matrix_;
};

TEST_P(CublasLtTest, UsesTheFirstAlgorithmWhereItGivesEqualBits) {
  Pack();
  EXPECT_THAT(products_->report(), ElementsAre(HasSubstr(": cuBLASLt, 1 algorithms tested")));
  ExpectSameBitsForAllNumbersOfRows();
  EXPECT_FALSE(IsBitEqual(RunOn(RandomFloats(9 * kK, 3)), RunOurs(RandomFloats(9 * kK, 3))));
  EXPECT_TRUE(queue_.status().ok()) << queue_.status();
  // The same shape again is not tested again.
  Pack();
  EXPECT_EQ(products_->report().size(), 1);
}

TEST_P(CublasLtTest, TriesTheNextAlgorithmWhereBitsDependOnTheBatch) {
  cuda_on_cpu::SetCublasLtFault(CublasLtAlgorithm::kRising, CublasLtFault::kBitsDependOnColumns);
  Pack();
  EXPECT_THAT(products_->report(), ElementsAre(HasSubstr(": cuBLASLt, 2 algorithms tested")));
  ExpectSameBitsForAllNumbersOfRows();
}

TEST_P(CublasLtTest, LeavesWhatCannotBeTrustedToOurKernel) {
  cuda_on_cpu::SetCublasLtFault(CublasLtAlgorithm::kRising, CublasLtFault::kBitsDependOnColumns);
  cuda_on_cpu::SetCublasLtFault(CublasLtAlgorithm::kInterleaved, CublasLtFault::kFails);
  Pack();
  EXPECT_THAT(products_->report(), ElementsAre(HasSubstr(": Millrace's kernel, 2 algorithms tested")));
  const std::vector<float> x = RandomFloats(40 * kK, 4);
  EXPECT_TRUE(IsBitEqual(RunOn(x), RunOurs(x)));
  EXPECT_TRUE(queue_.status().ok()) << queue_.status();
}

TEST_P(CublasLtTest, LeavesWhatTheHeuristicDoesNotKnowToOurKernel) {
  cuda_on_cpu::SetCublasLtOffersNothing(true);
  Pack();
  EXPECT_THAT(products_->report(), ElementsAre(HasSubstr(": Millrace's kernel, 0 algorithms tested")));
  const std::vector<float> x = RandomFloats(3 * kK, 5);
  EXPECT_TRUE(IsBitEqual(RunOn(x), RunOurs(x)));
}

TEST_P(CublasLtTest, DoesWithoutWhereThereIsNoMemoryForTheTest) {
  // The workspace's, then each of the test's own.
  for (int call = 1; call <= 5; ++call) {
    std::string why;
    const auto products = CublasProducts::Make(&why);
    CudaQueue queue(device_.stream(), TraitsOfAllKinds().back());
    queue.UseCublas(products.get());
    cuda_on_cpu::FailCall("cudaMalloc", call, cudaErrorMemoryAllocation);
    matrix_ = PackFloat(queue, weights_.matrix, packed_.data());
    EXPECT_THAT(products->report(), ElementsAre(HasSubstr("no memory for cuBLASLt's self-test"))) << call;
    const std::vector<float> x = RandomFloats(3 * kK, 6);
    EXPECT_TRUE(IsBitEqual(RunOn(queue, x), RunOurs(x)));
    EXPECT_TRUE(queue.status().ok()) << queue.status();
  }
}

TEST_P(CublasLtTest, SumsOfSegmentsStayWithOurKernel) {
  Pack();
  const std::vector<float> x = RandomFloats(5 * kK, 7);
  EXPECT_TRUE(IsBitEqual(RunOn(queue_, x, {32, kK}), RunOn(device_.queue(), x, {32, kK})));
}

TEST_P(CublasLtTest, SaysWhatFailed) {
  Pack();
  cuda_on_cpu::SetCublasLtFault(CublasLtAlgorithm::kRising, CublasLtFault::kFails);
  (void)RunOn(RandomFloats(kK, 8));
  EXPECT_THAT(queue_.status().ToString(), HasSubstr("cuBLASLt product: the GPU program failed to execute"));
}

TEST_P(CublasLtTest, GivesItsMemoryBack) {
  const int before = cuda_on_cpu::TakeCensus().device_allocations;
  Pack();
  EXPECT_EQ(cuda_on_cpu::TakeCensus().device_allocations, before + 1) << "more than the workspace is kept";
  products_ = nullptr;
  EXPECT_EQ(cuda_on_cpu::TakeCensus().device_allocations, before);
}

INSTANTIATE_TEST_SUITE_P(Types, CublasLtTest, ::testing::Values(WeightType::kF16, WeightType::kBF16));

}  // namespace
}  // namespace millrace::kernels::cuda
