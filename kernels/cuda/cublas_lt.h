// Products with F16 and BF16 weights by cuBLASLt, where it can be trusted to give a row the same bits in
// every batch.
//
// Of a type and K the heuristic is asked once, for a fixed number of weights' rows, so that an algorithm
// depends neither on how a matrix is cut among shards nor on the batch; no split of K, no reduction. Before
// an algorithm is used, at load, rows alone are compared bit by bit with the same rows in every number of
// rows that it will be called with, and with a product of half of the weights' rows. Where anything differs
// the next algorithm is tried; where none is left, matmul_float.cu's kernels do.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_queue.h"
#include "kernels/weights.h"

namespace millrace::kernels::cuda {

// Of one call. All in device memory.
struct CublasProduct {
  const uint8_t* weights = nullptr;  // [n, k], rows row_bytes apart, 16-byte aligned like row_bytes
  size_t row_bytes = 0;
  WeightType type = WeightType::kF16;
  size_t n = 0;
  size_t k = 0;
  const uint16_t* x = nullptr;  // [rows, k] of the weights' type, 16-byte aligned rows
  size_t x_stride = 0;          // elements
  size_t rows = 0;
  float* out = nullptr;   // [rows, n], 16-byte aligned rows
  size_t out_stride = 0;  // floats
};

// The number of rows of the largest call of those that `rows` (at least 1) are cut into: only numbers that
// were tested.
size_t TestedRows(size_t rows);
inline constexpr size_t kMaxTestedRows = 256;

// Thread: the shard's, as its queue.
class CublasProducts {
 public:
  // Null, and why: there is no library, or it does not start.
  static std::unique_ptr<CublasProducts> Make(std::string* why);
  // Of the library: 10000 * major + 100 * minor + patch.
  static size_t Version();
  ~CublasProducts();
  CublasProducts(const CublasProducts&) = delete;
  CublasProducts& operator=(const CublasProducts&) = delete;

  // At load, not while capturing: tests algorithms on `product`, of which only the weights are given, unless
  // that was done for its type, n and k; takes device memory meanwhile, and for a workspace that is kept.
  void Prepare(const CudaQueue& queue, const CublasProduct& product);
  // Whether an algorithm passed, and the addresses and strides suit.
  bool Serves(const CublasProduct& product) const;
  // REQUIRES: Serves(product). Enqueued; allocates nothing.
  void Multiply(const CudaQueue& queue, const CublasProduct& product) const;

  // A line for each matrix shape that was tested, for people.
  const std::vector<std::string>& report() const { return report_; }

 private:
  struct Plan;
  class SelfTest;

  CublasProducts() = default;
  const Plan* Find(const CublasProduct& product) const;
  std::unique_ptr<Plan> MakePlan(const CublasProduct& product, size_t n) const;
  std::vector<cublasLtMatmulHeuristicResult_t> Candidates(const CublasProduct& product) const;
  cublasStatus_t Run(const Plan& plan, const CublasProduct& product, cudaStream_t stream) const;
  bool Accepts(const Plan& plan, size_t rows) const;

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  void* workspace_ = nullptr;
  std::vector<std::unique_ptr<Plan>> plans_;
  std::vector<std::string> report_;
};

}  // namespace millrace::kernels::cuda
