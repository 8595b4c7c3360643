#include "cuda_on_cpu/cublas_lt.h"

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "stream_work.h"

namespace cuda_on_cpu {
namespace {

constexpr int kAlgorithms = 3;
constexpr uint64_t kSplitReduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
constexpr uint64_t kMagic = 0x6d696c6c72616365;
std::atomic<CublasLtFault> faults[kAlgorithms];
std::atomic<bool> offers_nothing = false;

[[noreturn]] void Misuse(const std::string& what) {
  std::fprintf(stderr, "cuBLASLt on the CPU: %s\n", what.c_str());
  std::abort();
}

// The words of cuBLASLt's descriptors, as this file uses them.
struct Layout {
  uint64_t type = 0;
  uint64_t rows = 0;
  uint64_t columns = 0;
  int64_t stride = 0;  // from column to column

  size_t element_bytes() const { return type == CUDA_R_32F ? 4 : 2; }
};
struct Desc {
  uint64_t compute = 0;
  uint64_t transposed[2] = {};  // A, B
};
struct Preference {
  uint64_t workspace = 0;
  uint64_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
};
struct Algorithm {
  uint64_t magic = 0;
  uint64_t id = 0;
  uint64_t splits = 1;
};

template <class Words, class Opaque>
Words Read(const Opaque* from) {
  static_assert(sizeof(Words) <= sizeof(Opaque));
  if (from == nullptr) Misuse("a descriptor is missing");
  Words words;
  std::memcpy(static_cast<void*>(&words), from, sizeof(words));
  return words;
}
template <class Words, class Opaque>
void Write(const Words& words, Opaque* to) {
  std::memcpy(to, &words, sizeof(words));
}

struct Product {
  Layout a, b, c, d;
  Desc desc;
  Algorithm algorithm;
  const void* a_data;
  const void* b_data;
  const float* c_data;
  float* d_data;
  float* workspace;
  float alpha;
  float beta;

  uint64_t depth() const { return desc.transposed[0] ? a.rows : a.columns; }
};

float Element(const Layout& layout, const void* data, uint64_t row, uint64_t column) {
  const uint64_t index = row + column * static_cast<uint64_t>(layout.stride);
  switch (layout.type) {
    case CUDA_R_16F:
      return __half2float(static_cast<const __half*>(data)[index]);
    case CUDA_R_16BF:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

// Row or column `index` of op(A) or op(B).
void Gather(const Layout& layout, const void* data, bool along_rows, uint64_t index,
            std::vector<float>* out) {
  for (uint64_t k = 0; k < out->size(); ++k) {
    (*out)[k] = along_rows ? Element(layout, data, k, index) : Element(layout, data, index, k);
  }
}

float Rising(const float* a, const float* b, uint64_t depth) {
  float sum = 0.0f;
  for (uint64_t k = 0; k < depth; ++k) sum = std::fma(a[k], b[k], sum);
  return sum;
}

float Interleaved(const float* a, const float* b, uint64_t depth) {
  float chains[4] = {};
  for (uint64_t k = 0; k < depth; ++k) chains[k % 4] = std::fma(a[k], b[k], chains[k % 4]);
  return (chains[0] + chains[1]) + (chains[2] + chains[3]);
}

float Sum(const Product& p, const float* a, const float* b, float* workspace) {
  auto algorithm = static_cast<CublasLtAlgorithm>(p.algorithm.id);
  const uint64_t depth = p.depth();
  constexpr uint64_t kManyColumns = 8;
  if (faults[p.algorithm.id] == CublasLtFault::kBitsDependOnColumns && p.d.columns > kManyColumns) {
    algorithm = algorithm == CublasLtAlgorithm::kInterleaved ? CublasLtAlgorithm::kRising
                                                             : CublasLtAlgorithm::kInterleaved;
  }
  switch (algorithm) {
    case CublasLtAlgorithm::kInterleaved:
      return Interleaved(a, b, depth);
    case CublasLtAlgorithm::kSplit:
      workspace[0] = Rising(a, b, depth / 2);
      workspace[1] = Rising(a + depth / 2, b + depth / 2, depth - depth / 2);
      return workspace[0] + workspace[1];
    case CublasLtAlgorithm::kRising:
      break;
  }
  return Rising(a, b, depth);
}

void Multiply(const Product& p) {
  std::vector<float> a(p.depth()), b(p.depth());
  for (uint64_t row = 0; row < p.d.rows; ++row) {
    Gather(p.a, p.a_data, p.desc.transposed[0] != 0, row, &a);
    for (uint64_t column = 0; column < p.d.columns; ++column) {
      Gather(p.b, p.b_data, p.desc.transposed[1] == 0, column, &b);
      float* workspace = p.workspace == nullptr ? nullptr : p.workspace + 2 * (row + column * p.d.rows);
      const float sum = p.alpha * Sum(p, a.data(), b.data(), workspace);
      float& out = p.d_data[row + column * static_cast<uint64_t>(p.d.stride)];
      const uint64_t addend = row + column * static_cast<uint64_t>(p.c.stride);
      // With beta 0 C is not read: NaN does not spread.
      out = p.beta == 0.0f ? sum : std::fma(p.beta, p.c_data[addend], sum);
    }
  }
}

size_t WorkspaceBytes(uint64_t id, const Layout& d) {
  return static_cast<CublasLtAlgorithm>(id) == CublasLtAlgorithm::kSplit
             ? 2 * d.rows * d.columns * sizeof(float)
             : 0;
}

void Describe(const Algorithm& algorithm, const Layout& d, cublasLtMatmulHeuristicResult_t* result) {
  *result = {};
  Write(algorithm, &result->algo);
  result->workspaceSize = WorkspaceBytes(algorithm.id, d);
  result->state = CUBLAS_STATUS_SUCCESS;
  result->wavesCount = 1.0f;
}

void CheckShapes(const Product& p) {
  const uint64_t rows = p.desc.transposed[0] ? p.a.columns : p.a.rows;
  const uint64_t depth = p.desc.transposed[1] ? p.b.columns : p.b.rows;
  const uint64_t columns = p.desc.transposed[1] ? p.b.rows : p.b.columns;
  if (p.depth() != depth || rows != p.d.rows || columns != p.d.columns || p.c.rows != p.d.rows ||
      p.c.columns != p.d.columns) {
    Misuse("shapes do not fit");
  }
  if (p.a.type != p.b.type || p.c.type != CUDA_R_32F || p.d.type != CUDA_R_32F)
    Misuse("types are not known here");
  for (const Layout* layout : {&p.a, &p.b, &p.c, &p.d}) {
    if (layout->stride < static_cast<int64_t>(layout->rows)) Misuse("columns overlap");
  }
}

bool Aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

template <class Word>
cublasStatus_t Set(Word* word, const void* from, size_t bytes, size_t expected) {
  if (from == nullptr || bytes != expected) return CUBLAS_STATUS_INVALID_VALUE;
  *word = 0;
  std::memcpy(word, from, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

void SetCublasLtFault(CublasLtAlgorithm algorithm, CublasLtFault fault) {
  faults[static_cast<int>(algorithm)] = fault;
}

void SetCublasLtOffersNothing(bool nothing) {
  offers_nothing = nothing;
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;  // NOLINT: what follows are cuBLASLt's own names

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  static char any;
  *handle = reinterpret_cast<cublasLtHandle_t>(&any);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) {
  return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion() {
  return CUBLAS_VERSION;
}
const char* cublasLtGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS of an error";
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "the operation completed successfully";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the functionality requested is not supported";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the GPU program failed to execute";
    default:
      return "an error";
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t stride) {
  *layout = new cublasLtMatrixLayoutOpaque_t{};
  Write(Layout{static_cast<uint64_t>(type), rows, columns, stride}, *layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* from,
                                                size_t bytes) {
  Layout words = Read<Layout>(layout);
  cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
  if (attribute == CUBLASLT_MATRIX_LAYOUT_ROWS) status = Set(&words.rows, from, bytes, 8);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_COLS) status = Set(&words.columns, from, bytes, 8);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_LD) status = Set(&words.stride, from, bytes, 8);
  Write(words, layout);
  return status;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) Misuse("only float32 sums are known here");
  *desc = new cublasLtMatmulDescOpaque_t{};
  Write(Desc{static_cast<uint64_t>(compute), {}}, *desc);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute, const void* from,
                                              size_t bytes) {
  Desc words = Read<Desc>(desc);
  const bool a = attribute == CUBLASLT_MATMUL_DESC_TRANSA;
  if (!a && attribute != CUBLASLT_MATMUL_DESC_TRANSB) return CUBLAS_STATUS_NOT_SUPPORTED;
  uint64_t operation = 0;
  const cublasStatus_t status = Set(&operation, from, bytes, sizeof(int32_t));
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  words.transposed[a ? 0 : 1] = operation == CUBLAS_OP_N ? 0 : 1;
  Write(words, desc);
  return status;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t{};
  Write(Preference(), *preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* from, size_t bytes) {
  Preference words = Read<Preference>(preference);
  // What else a caller prefers decides nothing here.
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) status = Set(&words.workspace, from, bytes, 8);
  if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
    status = Set(&words.reductions, from, bytes, 4);
  Write(words, preference);
  return status;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference,
                                              int most, cublasLtMatmulHeuristicResult_t results[],
                                              int* count) {
  *count = 0;
  if (offers_nothing) return CUBLAS_STATUS_NOT_SUPPORTED;
  const Preference words = Read<Preference>(preference);
  for (uint64_t id = 0; id < kAlgorithms && *count < most; ++id) {
    const size_t needed = WorkspaceBytes(id, Read<Layout>(d));
    if (needed > words.workspace) continue;
    if (needed != 0 && (words.reductions & kSplitReduction) == 0) continue;
    Describe({kMagic, id, needed == 0 ? 1u : 2u}, Read<Layout>(d), &results[(*count)++]);
  }
  return *count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void* to,
                                                    size_t bytes, size_t* written) {
  const Algorithm words = Read<Algorithm>(algorithm);
  int32_t value = 0;
  if (attribute == CUBLASLT_ALGO_CONFIG_ID) value = static_cast<int32_t>(words.id);
  if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) value = static_cast<int32_t>(words.splits);
  if (attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME && words.splits > 1) {
    value = static_cast<int32_t>(kSplitReduction);
  }
  if (bytes < sizeof(value)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(to, &value, sizeof(value));
  if (written != nullptr) *written = sizeof(value);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                       cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t* algorithm,
                                       cublasLtMatmulHeuristicResult_t* result) {
  const Algorithm words = Read<Algorithm>(algorithm);
  if (words.magic != kMagic || words.id >= kAlgorithms) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasLtMatmulAlgo_t kept = result->algo;
  Describe(words, Read<Layout>(d), result);
  result->algo = kept;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  Product p{Read<Layout>(a_layout),
            Read<Layout>(b_layout),
            Read<Layout>(c_layout),
            Read<Layout>(d_layout),
            Read<Desc>(desc),
            Read<Algorithm>(algorithm),
            a,
            b,
            static_cast<const float*>(c),
            static_cast<float*>(d),
            static_cast<float*>(workspace),
            0.0f,
            0.0f};
  if (p.algorithm.magic != kMagic || p.algorithm.id >= kAlgorithms)
    Misuse("an algorithm that nothing offered");
  CheckShapes(p);
  if (WorkspaceBytes(p.algorithm.id, p.d) > workspace_bytes) return CUBLAS_STATUS_INVALID_VALUE;
  if (!Aligned(a) || !Aligned(b) || !Aligned(d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (faults[p.algorithm.id] == CublasLtFault::kFails) return CUBLAS_STATUS_EXECUTION_FAILED;
  std::memcpy(&p.alpha, alpha, sizeof(float));
  std::memcpy(&p.beta, beta, sizeof(float));
  return EnqueueWork(stream, [p] { Multiply(p); }) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                  : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
