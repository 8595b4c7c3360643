#include "kernels/cuda/cuda_backend.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/sample.h"

namespace millrace::kernels::cuda {
namespace {

class OpTable final : public CudaBackend {
 public:
  OpTable(cudaStream_t stream, const DeviceTraits& traits)
      : no_cublas_(1), cublas_(CublasProducts::Make(&no_cublas_.front())), queue_(stream, traits) {
    queue_.UseCublas(cublas_.get());
  }

  absl::Status status() const override { return queue_.status(); }
  const CudaQueue& queue() const override { return queue_; }
  std::string numeric_class() const override {
    return absl::StrCat("cuda/sm_", queue_.traits().capability,
                        cublas_ == nullptr ? "" : absl::StrCat("/cublas-", CublasProducts::Version()),
                        "/int8");
  }
  const std::vector<std::string>& report() const override {
    return cublas_ == nullptr ? no_cublas_ : cublas_->report();
  }
  std::string name() const override { return absl::StrCat("sm_", queue_.traits().capability); }
  size_t threads() const override { return 1; }

  size_t PackedBytes(const WeightMatrix& weights) const override { return cuda::PackedBytes(weights); }
  WeightMatrix Pack(const WeightMatrix& weights, uint8_t* to) const override {
    return cuda::Pack(queue_, weights, to);
  }
  size_t MatMulScratchFloats(size_t max_rows, size_t max_columns) const override {
    return cuda::MatMulScratchFloats(max_rows, max_columns);
  }
  size_t AttentionScratchFloats(size_t) const override { return 0; }
  size_t AttentionScratch(const AttentionSizes& sizes) const override {
    return cuda::AttentionScratch(sizes);
  }
  size_t MatMulInputBytes(size_t max_rows, size_t columns) const override {
    return cuda::MatMulInputBytes(max_rows, columns);
  }
  MatMulInput PrepareInput(const PrepareInputArgs& args) const override {
    return cuda::PrepareInput(queue_, args);
  }
  size_t BatchBytes(size_t max_rows, size_t context_tokens, size_t block_tokens) const override {
    return cuda::BatchBytes(max_rows, context_tokens, block_tokens);
  }
  BatchRows PlaceBatch(const PlaceBatchArgs& args) const override { return cuda::PlaceBatch(queue_, args); }

  void Embed(const EmbedArgs& args) const override { cuda::Embed(queue_, args); }
  void RmsNorm(const RmsNormArgs& args) const override { cuda::RmsNorm(queue_, args); }
  void MatMul(const MatMulArgs& args) const override { cuda::MatMulAll(queue_, {&args, 1}); }
  void AddPartials(const AddPartialsArgs& args) const override { cuda::AddPartials(queue_, args); }
  void Rope(const RopeArgs& args) const override { cuda::Rope(queue_, args); }
  void StoreKv(const StoreKvArgs& args) const override { cuda::StoreKv(queue_, args); }
  void PagedAttention(const PagedAttentionArgs& args) const override { cuda::PagedAttention(queue_, args); }
  void SwiGlu(const SwiGluArgs& args) const override { cuda::SwiGlu(queue_, args); }

  MatMulInput NormAndPrepare(const NormAndPrepareArgs& args) const override {
    return cuda::NormAndPrepare(queue_, args);
  }
  void MatMulAll(absl::Span<const MatMulArgs> products) const override { cuda::MatMulAll(queue_, products); }
  void RopeAndStoreKv(const RopeAndStoreKvArgs& args) const override { cuda::RopeAndStoreKv(queue_, args); }
  MatMulInput SwiGluAndPrepare(const SwiGluAndPrepareArgs& args) const override {
    return cuda::SwiGluAndPrepare(queue_, args);
  }

  size_t SampleBytes(size_t max_rows, size_t vocabulary) const override {
    return vocabulary < kMaxSampleVocabulary ? cuda::SampleBytes(max_rows, vocabulary) : 0;
  }
  size_t SampleStagingBytes(size_t max_rows) const override { return cuda::SampleStagingBytes(max_rows); }
  void Sample(const SampleArgs& args) const override { cuda::Sample(queue_, args); }

 private:
  std::vector<std::string> no_cublas_;  // why
  const std::unique_ptr<CublasProducts> cublas_;
  CudaQueue queue_;
};

}  // namespace

std::unique_ptr<CudaBackend> MakeCudaBackend(cudaStream_t stream, const DeviceTraits& traits) {
  return std::make_unique<OpTable>(stream, traits);
}

}  // namespace millrace::kernels::cuda
