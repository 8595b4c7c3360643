#include "kernels/backend.h"
#include "kernels/reference/ops.h"

namespace millrace::kernels {
namespace {

class ReferenceBackend : public Backend {
 public:
  std::string numeric_class() const override { return "reference/f32"; }
  std::string name() const override { return "reference"; }
  size_t threads() const override { return 1; }
  size_t PackedBytes(const WeightMatrix&) const override { return 0; }
  WeightMatrix Pack(const WeightMatrix& weights, uint8_t*) const override { return weights; }
  size_t MatMulScratchFloats(size_t, size_t) const override { return 0; }
  size_t AttentionScratchFloats(size_t) const override { return 0; }
  size_t MatMulInputBytes(size_t, size_t) const override { return 0; }
  MatMulInput PrepareInput(const PrepareInputArgs& args) const override {
    return {args.x, args.rows, args.columns, nullptr};
  }

  void Embed(const EmbedArgs& args) const override { reference::Embed(args); }
  void RmsNorm(const RmsNormArgs& args) const override { reference::RmsNorm(args); }
  void MatMul(const MatMulArgs& args) const override { reference::MatMul(args); }
  void AddPartials(const AddPartialsArgs& args) const override { reference::AddPartials(args); }
  void Rope(const RopeArgs& args) const override { reference::Rope(args); }
  void StoreKv(const StoreKvArgs& args) const override { reference::StoreKv(args); }
  void PagedAttention(const PagedAttentionArgs& args) const override { reference::PagedAttention(args); }
  void SwiGlu(const SwiGluArgs& args) const override { reference::SwiGlu(args); }
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend() {
  return std::make_unique<ReferenceBackend>();
}

}  // namespace millrace::kernels
