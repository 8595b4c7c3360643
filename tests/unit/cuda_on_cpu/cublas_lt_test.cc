// The stand-in for cuBLASLt, from the cuBLAS library's documentation ("Using the cuBLASLt API").
#include "cuda_on_cpu/cublas_lt.h"

#include <cublasLt.h>
#include <cuda_fp16.h>

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace cuda_on_cpu {
namespace {

using millrace::kernels::cuda::DeviceArray;
using millrace::kernels::cuda::DeviceBytes;
using millrace::kernels::cuda::TestDevice;

constexpr uint64_t kM = 5, kK = 24;

// Of sizes so different that every order of adding gives other bits.
float Value(uint64_t i) {
  return std::ldexp(1.0f + static_cast<float>(i * 37 % 97) / 128, static_cast<int>(i * 5 % 23) - 11);
}

std::vector<__half> Halves(uint64_t count) {
  std::vector<__half> values;
  for (uint64_t i = 0; i < count; ++i) values.push_back(__float2half_rn(Value(i)));
  return values;
}

// D [m, n] = A^T B of A [k, m] and B [k, n], column by column: weights and rows of activations.
class CublasLtTest : public ::testing::Test {
 protected:
  CublasLtTest() {
    EXPECT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    EXPECT_EQ(
        cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
        CUBLAS_STATUS_SUCCESS);
  }
  ~CublasLtTest() override {
    cublasLtMatmulDescDestroy(desc_);
    cublasLtDestroy(handle_);
    for (int i = 0; i < 3; ++i) SetCublasLtFault(static_cast<CublasLtAlgorithm>(i), CublasLtFault::kNone);
    SetCublasLtOffersNothing(false);
  }

  std::vector<cublasLtMatmulHeuristicResult_t> Offers(uint64_t n, uint64_t workspace,
                                                      uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK) {
    cublasLtMatrixLayout_t a, b, d;
    MakeLayouts(n, &a, &b, &d);
    cublasLtMatmulPreference_t preference;
    EXPECT_EQ(cublasLtMatmulPreferenceCreate(&preference), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                   &workspace, sizeof(workspace)),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                   &reductions, sizeof(reductions)),
              CUBLAS_STATUS_SUCCESS);
    std::vector<cublasLtMatmulHeuristicResult_t> offers(8);
    int count = 0;
    (void)cublasLtMatmulAlgoGetHeuristic(handle_, desc_, a, b, d, d, preference, 8, offers.data(), &count);
    offers.resize(static_cast<size_t>(count));
    cublasLtMatmulPreferenceDestroy(preference);
    DestroyLayouts(a, b, d);
    return offers;
  }

  struct Scales {
    float alpha = 1.0f;
    float beta = 0.0f;
    float c = 0.0f;
  };
  cublasStatus_t Multiply(const cublasLtMatmulHeuristicResult_t& offer, uint64_t n, Scales scales,
                          std::vector<float>* result) {
    cublasLtMatrixLayout_t a_layout, b_layout, d_layout;
    MakeLayouts(n, &a_layout, &b_layout, &d_layout);
    const DeviceArray<__half> a(Halves(kK * kM)), b(Halves(kK * n));
    const DeviceArray<float> d(std::vector<float>(kM * n, scales.c));
    DeviceBytes workspace(offer.workspaceSize + 16);
    const cublasStatus_t status = cublasLtMatmul(
        handle_, desc_, &scales.alpha, a.data(), a_layout, b.data(), b_layout, &scales.beta, d.data(),
        d_layout, d.data(), d_layout, &offer.algo, workspace.data(), offer.workspaceSize, device_.stream());
    device_.Wait();
    EXPECT_TRUE(d.Intact());
    EXPECT_TRUE(workspace.Intact());
    *result = d.values();
    DestroyLayouts(a_layout, b_layout, d_layout);
    return status;
  }

  TestDevice device_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t desc_ = nullptr;

 private:
  void MakeLayouts(uint64_t n, cublasLtMatrixLayout_t* a, cublasLtMatrixLayout_t* b,
                   cublasLtMatrixLayout_t* d) {
    EXPECT_EQ(cublasLtMatrixLayoutCreate(a, CUDA_R_16F, kK, kM, kK), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatrixLayoutCreate(b, CUDA_R_16F, kK, n, kK), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatrixLayoutCreate(d, CUDA_R_32F, kM, n, kM), CUBLAS_STATUS_SUCCESS);
  }
  void DestroyLayouts(cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t d) {
    for (cublasLtMatrixLayout_t layout : {a, b, d}) cublasLtMatrixLayoutDestroy(layout);
  }
};

constexpr uint64_t kEnough = 1 << 20;

TEST_F(CublasLtTest, AllAlgorithmsMultiply) {
  const auto offers = Offers(3, kEnough);
  ASSERT_EQ(offers.size(), 3u);
  const std::vector<__half> a = Halves(kK * kM), b = Halves(kK * 3);
  for (const auto& offer : offers) {
    std::vector<float> result;
    ASSERT_EQ(Multiply(offer, 3, {2.0f, 0.5f, 8.0f}, &result), CUBLAS_STATUS_SUCCESS);
    for (uint64_t i = 0; i < result.size(); ++i) {
      double sum = 0;
      for (uint64_t k = 0; k < kK; ++k) {
        sum += double{__half2float(a[i % kM * kK + k])} * __half2float(b[i / kM * kK + k]);
      }
      EXPECT_NEAR(result[i], 2 * sum + 4, (kK + 2) * std::ldexp(2 * sum + 4, -24)) << i;
    }
  }
}

TEST_F(CublasLtTest, DoesNotReadWhatBetaLeavesOut) {
  std::vector<float> result;
  ASSERT_EQ(
      Multiply(Offers(1, kEnough)[0], 1, {1.0f, 0.0f, std::numeric_limits<float>::quiet_NaN()}, &result),
      CUBLAS_STATUS_SUCCESS);
  for (float value : result) EXPECT_TRUE(std::isfinite(value));
}

TEST_F(CublasLtTest, OffersOnlyWhatTheWorkspaceHolds) {
  EXPECT_EQ(Offers(3, 0).size(), 2u);
  EXPECT_EQ(Offers(3, kEnough, CUBLASLT_REDUCTION_SCHEME_NONE).size(), 2u);
  for (const auto& offer : Offers(3, kEnough)) {
    int32_t splits = 0;
    size_t written = 0;
    ASSERT_EQ(cublasLtMatmulAlgoConfigGetAttribute(&offer.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                                   sizeof(splits), &written),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(splits, offer.workspaceSize == 0 ? 1 : 2);
    EXPECT_EQ(written, sizeof(splits));
  }
  SetCublasLtOffersNothing(true);
  EXPECT_TRUE(Offers(3, kEnough).empty());
}

TEST_F(CublasLtTest, BitsDependOnOtherColumnsOnlyWhereAsked) {
  constexpr uint64_t kMany = 9;
  for (const bool fault : {false, true}) {
    SetCublasLtFault(CublasLtAlgorithm::kRising,
                     fault ? CublasLtFault::kBitsDependOnColumns : CublasLtFault::kNone);
    std::vector<float> alone, together;
    ASSERT_EQ(Multiply(Offers(1, 0)[0], 1, {}, &alone), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(Multiply(Offers(kMany, 0)[0], kMany, {}, &together), CUBLAS_STATUS_SUCCESS);
    together.resize(kM);
    EXPECT_EQ(alone == together, !fault);
  }
}

TEST_F(CublasLtTest, FailsWhereAsked) {
  SetCublasLtFault(CublasLtAlgorithm::kRising, CublasLtFault::kFails);
  std::vector<float> result;
  EXPECT_EQ(Multiply(Offers(1, 0)[0], 1, {}, &result), CUBLAS_STATUS_EXECUTION_FAILED);
}

}  // namespace
}  // namespace cuda_on_cpu
