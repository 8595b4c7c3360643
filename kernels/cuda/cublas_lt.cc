#include "kernels/cuda/cublas_lt.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/compare_rows.h"

namespace millrace::kernels::cuda {
namespace {

constexpr size_t kAlignment = 16;
constexpr size_t kWorkspaceBytes = size_t{32} << 20;
// What the heuristic is asked for, whatever matrix and batch.
constexpr size_t kAskedWeightRows = 4096;
constexpr size_t kAskedRows = kMaxTestedRows;
constexpr int kCandidates = 8;
constexpr size_t kReferences = 8;  // different rows of the self-test

struct DestroyLayout {
  void operator()(cublasLtMatrixLayoutOpaque_t* layout) const { (void)cublasLtMatrixLayoutDestroy(layout); }
};
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyLayout>;

// Column-major, as all of cuBLASLt: a row-major matrix is its own transpose.
Layout MakeLayout(cudaDataType_t type, size_t rows, size_t columns, size_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  if (cublasLtMatrixLayoutCreate(&layout, type, rows, columns, static_cast<int64_t>(stride)) !=
      CUBLAS_STATUS_SUCCESS) {
    return nullptr;
  }
  return Layout(layout);
}

template <class T>
bool SetPreference(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                   T value) {
  return cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)) ==
         CUBLAS_STATUS_SUCCESS;
}

bool SetColumns(cublasLtMatrixLayout_t layout, size_t columns, size_t stride) {
  const uint64_t number = columns;
  const int64_t distance = static_cast<int64_t>(stride);
  return cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &number, sizeof(number)) ==
             CUBLAS_STATUS_SUCCESS &&
         cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_LD, &distance, sizeof(distance)) ==
             CUBLAS_STATUS_SUCCESS;
}

// Neither splits K nor reduces.
bool IsInOneGo(const cublasLtMatmulAlgo_t& algorithm) {
  int32_t splits = 0;
  uint32_t reduction = 0;
  size_t written = 0;
  if (cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                           sizeof(splits), &written) != CUBLAS_STATUS_SUCCESS ||
      cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                           sizeof(reduction), &written) != CUBLAS_STATUS_SUCCESS) {
    return false;
  }
  return splits <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

cudaDataType_t DataType(WeightType type) {
  return type == WeightType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

bool IsAligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kAlignment == 0;
}

// Device memory of a self-test. Null where there is none left, which is no error.
class TestMemory {
 public:
  explicit TestMemory(size_t bytes) {
    if (cudaMalloc(&memory_, bytes) != cudaSuccess) {
      memory_ = nullptr;
      (void)cudaGetLastError();
    }
  }
  ~TestMemory() {
    if (memory_ != nullptr) (void)cudaFree(memory_);
  }
  TestMemory(const TestMemory&) = delete;
  TestMemory& operator=(const TestMemory&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
};

// kReferences different rows over and over, of magnitudes between 2^-4 and 1.
std::vector<uint16_t> TestRows(WeightType type, size_t k, size_t stride) {
  std::vector<uint16_t> rows(kMaxTestedRows * stride);
  uint32_t state = 1;
  for (size_t r = 0; r < kMaxTestedRows; ++r) {
    for (size_t i = 0; i < k; ++i) {
      uint16_t& value = rows[r * stride + i];
      if (r >= kReferences) {
        value = rows[r % kReferences * stride + i];
        continue;
      }
      state = state * 1664525u + 1013904223u;
      const uint32_t bits = state >> 16, exponent = state >> 8 & 3;
      value = static_cast<uint16_t>(type == WeightType::kF16 ? (bits & 0x83ffu) | (11 + exponent) << 10
                                                             : (bits & 0x807fu) | (123 + exponent) << 7);
    }
  }
  return rows;
}

}  // namespace

size_t TestedRows(size_t rows) {
  if (rows <= 16) return rows;
  if (rows < 128) return rows / 16 * 16;
  return std::min(rows / 64 * 64, kMaxTestedRows);
}

struct CublasProducts::Plan {
  WeightType type = WeightType::kF16;
  size_t n = 0;
  size_t k = 0;
  size_t row_bytes = 0;
  Layout weights, x, out;
  bool passed = false;
  cublasLtMatmulAlgo_t algorithm{};
};

class CublasProducts::SelfTest {
 public:
  // REQUIRES: `product` has the weights.
  SelfTest(const CublasProducts& products, const CudaQueue& queue, const CublasProduct& product)
      : products_(products),
        queue_(queue),
        product_(product),
        x_(kMaxTestedRows * Stride() * sizeof(uint16_t)),
        reference_(kReferences * product.n * sizeof(float)),
        out_(kMaxTestedRows * product.n * sizeof(float)),
        differences_(sizeof(uint32_t)) {
    const std::vector<uint16_t> rows = TestRows(product.type, product.k, Stride());
    ready_ = x_.as<void>() != nullptr && reference_.as<void>() != nullptr && out_.as<void>() != nullptr &&
             differences_.as<void>() != nullptr &&
             cudaMemcpyAsync(x_.as<void>(), rows.data(), rows.size() * sizeof(uint16_t),
                             cudaMemcpyHostToDevice, queue.stream()) == cudaSuccess &&
             cudaStreamSynchronize(queue.stream()) == cudaSuccess;
  }

  bool ready() const { return ready_; }

  // `half`: of the first product.n / 2 of the weights' rows; may be null.
  bool Passes(const Plan& plan, const Plan* half) const {
    if (cudaMemsetAsync(differences_.as<void>(), 0, sizeof(uint32_t), queue_.stream()) != cudaSuccess) {
      return false;
    }
    for (size_t r = 0; r < kReferences; ++r) {
      CublasProduct alone = Rows(plan, 1);
      alone.x += r * Stride();
      alone.out = reference_.as<float>() + r * product_.n;
      if (products_.Run(plan, alone, queue_.stream()) != CUBLAS_STATUS_SUCCESS) return false;
    }
    for (size_t rows = 1; rows <= kMaxTestedRows; ++rows) {
      if (TestedRows(rows) == rows && !Compare(plan, rows)) return false;
    }
    if (half != nullptr && !Compare(*half, kReferences)) return false;
    uint32_t differences = 1;
    return cudaMemcpyAsync(&differences, differences_.as<void>(), sizeof(differences), cudaMemcpyDeviceToHost,
                           queue_.stream()) == cudaSuccess &&
           cudaStreamSynchronize(queue_.stream()) == cudaSuccess && differences == 0;
  }

 private:
  size_t Stride() const {
    constexpr size_t kElements = kAlignment / sizeof(uint16_t);
    return (product_.k + kElements - 1) / kElements * kElements;
  }

  CublasProduct Rows(const Plan& plan, size_t rows) const {
    CublasProduct product = product_;
    product.n = plan.n;
    product.x = x_.as<uint16_t>();
    product.x_stride = Stride();
    product.rows = rows;
    product.out = out_.as<float>();
    product.out_stride = plan.n;
    return product;
  }

  bool Compare(const Plan& plan, size_t rows) const {
    const CublasProduct product = Rows(plan, rows);
    if (!products_.Accepts(plan, rows) ||
        cudaMemsetAsync(product.out, 0xff, rows * plan.n * sizeof(float), queue_.stream()) != cudaSuccess ||
        products_.Run(plan, product, queue_.stream()) != CUBLAS_STATUS_SUCCESS) {
      return false;
    }
    CompareRows(queue_, {product.out, rows, plan.n, reference_.as<float>(), kReferences, product_.n, plan.n,
                         differences_.as<uint32_t>()});
    return queue_.status().ok();
  }

  const CublasProducts& products_;
  const CudaQueue& queue_;
  const CublasProduct product_;
  const TestMemory x_;
  const TestMemory reference_;
  const TestMemory out_;
  const TestMemory differences_;
  bool ready_ = false;
};

std::unique_ptr<CublasProducts> CublasProducts::Make(std::string* why) {
  std::unique_ptr<CublasProducts> products(new CublasProducts());
  cublasStatus_t status = cublasLtCreate(&products->handle_);
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasLtMatmulDescCreate(&products->operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  }
  if (status == CUBLAS_STATUS_SUCCESS) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    status = cublasLtMatmulDescSetAttribute(products->operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof(transposed));
  }
  if (status == CUBLAS_STATUS_SUCCESS) return products;
  *why = absl::StrCat("cuBLASLt does not start: ", cublasLtGetStatusString(status));
  return nullptr;
}

size_t CublasProducts::Version() {
  return cublasLtGetVersion();
}

CublasProducts::~CublasProducts() {
  plans_.clear();
  if (operation_ != nullptr) (void)cublasLtMatmulDescDestroy(operation_);
  if (handle_ != nullptr) (void)cublasLtDestroy(handle_);
  if (workspace_ != nullptr) (void)cudaFree(workspace_);
}

const CublasProducts::Plan* CublasProducts::Find(const CublasProduct& product) const {
  for (const auto& plan : plans_) {
    if (plan->type == product.type && plan->n == product.n && plan->k == product.k &&
        plan->row_bytes == product.row_bytes) {
      return plan.get();
    }
  }
  return nullptr;
}

std::unique_ptr<CublasProducts::Plan> CublasProducts::MakePlan(const CublasProduct& product, size_t n) const {
  auto plan = std::make_unique<Plan>();
  plan->type = product.type;
  plan->n = n;
  plan->k = product.k;
  plan->row_bytes = product.row_bytes;
  const size_t stride = product.row_bytes / sizeof(uint16_t);
  plan->weights = MakeLayout(DataType(product.type), product.k, n, stride);
  plan->x = MakeLayout(DataType(product.type), product.k, kAskedRows, stride);
  plan->out = MakeLayout(CUDA_R_32F, n, kAskedRows, n);
  return plan->weights && plan->x && plan->out ? std::move(plan) : nullptr;
}

std::vector<cublasLtMatmulHeuristicResult_t> CublasProducts::Candidates(const CublasProduct& product) const {
  const std::unique_ptr<Plan> asked = MakePlan(product, kAskedWeightRows);
  cublasLtMatmulPreference_t preference = nullptr;
  if (asked == nullptr || cublasLtMatmulPreferenceCreate(&preference) != CUBLAS_STATUS_SUCCESS) return {};
  const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
  bool set = SetPreference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes}) &&
             SetPreference(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction);
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set = set && SetPreference(preference, attribute, uint32_t{kAlignment});
  }
  std::vector<cublasLtMatmulHeuristicResult_t> candidates(kCandidates);
  int found = 0;
  if (!set || cublasLtMatmulAlgoGetHeuristic(handle_, operation_, asked->weights.get(), asked->x.get(),
                                             asked->out.get(), asked->out.get(), preference, kCandidates,
                                             candidates.data(), &found) != CUBLAS_STATUS_SUCCESS) {
    found = 0;
  }
  (void)cublasLtMatmulPreferenceDestroy(preference);
  candidates.resize(static_cast<size_t>(found));
  std::erase_if(candidates, [](const cublasLtMatmulHeuristicResult_t& candidate) {
    return candidate.state != CUBLAS_STATUS_SUCCESS || !IsInOneGo(candidate.algo);
  });
  return candidates;
}

// Whether the plan's algorithm does that many rows.
bool CublasProducts::Accepts(const Plan& plan, size_t rows) const {
  cublasLtMatmulHeuristicResult_t result{};
  return SetColumns(plan.x.get(), rows, plan.row_bytes / sizeof(uint16_t)) &&
         SetColumns(plan.out.get(), rows, plan.n) &&
         cublasLtMatmulAlgoCheck(handle_, operation_, plan.weights.get(), plan.x.get(), plan.out.get(),
                                 plan.out.get(), &plan.algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= kWorkspaceBytes;
}

cublasStatus_t CublasProducts::Run(const Plan& plan, const CublasProduct& product,
                                   cudaStream_t stream) const {
  if (!SetColumns(plan.x.get(), product.rows, product.x_stride) ||
      !SetColumns(plan.out.get(), product.rows, product.out_stride)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const float one = 1, zero = 0;
  return cublasLtMatmul(handle_, operation_, &one, product.weights, plan.weights.get(), product.x,
                        plan.x.get(), &zero, product.out, plan.out.get(), product.out, plan.out.get(),
                        &plan.algorithm, workspace_, kWorkspaceBytes, stream);
}

void CublasProducts::Prepare(const CudaQueue& queue, const CublasProduct& product) {
  // What does not suit goes to the other kernels whatever the test would say.
  if (product.n % (kAlignment / sizeof(float)) != 0 || Find(product) != nullptr) return;
  std::unique_ptr<Plan> plan = MakePlan(product, product.n);
  if (plan == nullptr) return;
  const size_t half_n = product.n / 2 / kAlignment * kAlignment;
  const std::unique_ptr<Plan> half = half_n == 0 ? nullptr : MakePlan(product, half_n);
  if (workspace_ == nullptr && cudaMalloc(&workspace_, kWorkspaceBytes) != cudaSuccess) {
    workspace_ = nullptr;
    (void)cudaGetLastError();
  }
  const SelfTest test(*this, queue, product);
  size_t tried = 0;
  if (workspace_ != nullptr && test.ready()) {
    for (const cublasLtMatmulHeuristicResult_t& candidate : Candidates(product)) {
      ++tried;
      plan->algorithm = candidate.algo;
      if (half != nullptr) half->algorithm = candidate.algo;
      plan->passed = test.Passes(*plan, half.get());
      if (plan->passed) break;
    }
  }
  report_.push_back(
      absl::StrCat(product.n, " x ", product.k, product.type == WeightType::kF16 ? " F16" : " BF16", ": ",
                   plan->passed ? "cuBLASLt" : "Millrace's kernel",
                   workspace_ == nullptr || !test.ready() ? ", no memory for cuBLASLt's self-test"
                                                          : absl::StrCat(", ", tried, " algorithms tested")));
  plans_.push_back(std::move(plan));
}

bool CublasProducts::Serves(const CublasProduct& product) const {
  const Plan* plan = Find(product);
  return plan != nullptr && plan->passed && IsAligned(product.weights) && IsAligned(product.x) &&
         IsAligned(product.out) && product.x_stride * sizeof(uint16_t) % kAlignment == 0 &&
         product.out_stride * sizeof(float) % kAlignment == 0;
}

void CublasProducts::Multiply(const CudaQueue& queue, const CublasProduct& product) const {
  const Plan& plan = *Find(product);
  CublasProduct part = product;
  for (size_t done = 0; done < product.rows; done += part.rows) {
    part.rows = TestedRows(product.rows - done);
    part.x = product.x + done * product.x_stride;
    part.out = product.out + done * product.out_stride;
    const cublasStatus_t status = Run(plan, part, queue.stream());
    if (status != CUBLAS_STATUS_SUCCESS)
      return queue.Fail("cuBLASLt product", cublasLtGetStatusString(status));
  }
}

}  // namespace millrace::kernels::cuda
