// What tests control of the stand-in for cuBLASLt.
//
// D = alpha * op(A) * op(B) + beta * C in float32, of column-major float16, bfloat16 or float32 matrices and
// float32 C and D. Each algorithm adds in an order of its own; all but those that SetCublasLtFault names give
// a column of D the same bits whatever the other columns are. Misuse ends the process with a line that says
// what. What it cannot show: which algorithms a device has, what they need, time.
#pragma once

namespace cuda_on_cpu {

// What the heuristic offers, in this order: kRising adds k in rising order, kInterleaved four chains that are
// added at the end, kSplit two halves by way of the workspace (splits of K: 2).
enum class CublasLtAlgorithm { kRising, kInterleaved, kSplit };

enum class CublasLtFault {
  kNone,
  kBitsDependOnColumns,  // another order of adding for more than 8 columns
  kFails,                // cublasLtMatmul returns CUBLAS_STATUS_EXECUTION_FAILED
};
void SetCublasLtFault(CublasLtAlgorithm algorithm, CublasLtFault fault);
// The heuristic offers nothing.
void SetCublasLtOffersNothing(bool nothing);

}  // namespace cuda_on_cpu
