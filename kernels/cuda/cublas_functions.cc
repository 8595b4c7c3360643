// The functions of cuBLASLt that Millrace calls: each loads libcublasLt.so.13 if that was not tried yet, and
// calls its own; where there is none, they fail and cublasLtGetStatusString says why.
#include <cublasLt.h>
#include <dlfcn.h>

#include <string>

namespace {

struct Library {
  Library() {
    handle = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) error = dlerror();
  }
  void* handle = nullptr;
  std::string error;
};

const Library& CublasLt() {
  static const Library* const library = new Library();
  return *library;
}

// `declared` gives the function's type only.
template <class Function>
Function* Find(Function* /*declared*/, const char* name) {
  return CublasLt().handle == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(CublasLt().handle, name));
}

}  // namespace

#define MILLRACE_FORWARD(name, parameters, arguments)                                \
  cublasStatus_t name parameters {                                                   \
    static auto* const function = Find(&name, #name);                                \
    return function == nullptr ? CUBLAS_STATUS_NOT_INITIALIZED : function arguments; \
  }

extern "C" {

MILLRACE_FORWARD(cublasLtCreate, (cublasLtHandle_t * handle), (handle))
MILLRACE_FORWARD(cublasLtDestroy, (cublasLtHandle_t handle), (handle))
MILLRACE_FORWARD(cublasLtMatmulDescCreate,
                 (cublasLtMatmulDesc_t * operation, cublasComputeType_t compute, cudaDataType_t scale),
                 (operation, compute, scale))
MILLRACE_FORWARD(cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t operation), (operation))
MILLRACE_FORWARD(cublasLtMatmulDescSetAttribute,
                 (cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const void* value,
                  size_t bytes),
                 (operation, attribute, value, bytes))
MILLRACE_FORWARD(cublasLtMatrixLayoutCreate,
                 (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t columns,
                  int64_t stride),
                 (layout, type, rows, columns, stride))
MILLRACE_FORWARD(cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout), (layout))
MILLRACE_FORWARD(cublasLtMatrixLayoutSetAttribute,
                 (cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                  size_t bytes),
                 (layout, attribute, value, bytes))
MILLRACE_FORWARD(cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference), (preference))
MILLRACE_FORWARD(cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference), (preference))
MILLRACE_FORWARD(cublasLtMatmulPreferenceSetAttribute,
                 (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                  const void* value, size_t bytes),
                 (preference, attribute, value, bytes))
MILLRACE_FORWARD(cublasLtMatmulAlgoGetHeuristic,
                 (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                  cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                  cublasLtMatmulPreference_t preference, int wanted,
                  cublasLtMatmulHeuristicResult_t results[], int* found),
                 (handle, operation, a, b, c, d, preference, wanted, results, found))
MILLRACE_FORWARD(cublasLtMatmulAlgoConfigGetAttribute,
                 (const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute,
                  void* value, size_t bytes, size_t* written),
                 (algorithm, attribute, value, bytes, written))
MILLRACE_FORWARD(cublasLtMatmulAlgoCheck,
                 (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                  cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                  const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulHeuristicResult_t* result),
                 (handle, operation, a, b, c, d, algorithm, result))
MILLRACE_FORWARD(cublasLtMatmul,
                 (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                  cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                  const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                  cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                  size_t workspace_bytes, cudaStream_t stream),
                 (handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
                  algorithm, workspace, workspace_bytes, stream))

size_t cublasLtGetVersion() {
  static auto* const function = Find(&cublasLtGetVersion, "cublasLtGetVersion");
  return function == nullptr ? 0 : function();
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
  static auto* const function = Find(&cublasLtGetStatusString, "cublasLtGetStatusString");
  return function == nullptr ? CublasLt().error.c_str() : function(status);
}

}  // extern "C"
