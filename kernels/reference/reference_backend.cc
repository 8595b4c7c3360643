#include "kernels/backend.h"
#include "kernels/reference/ops.h"

namespace millrace::kernels {
namespace {

class ReferenceBackend : public Backend {
 public:
  std::string numeric_class() const override { return "reference/f32"; }
  std::string name() const override { return "reference"; }

  void Embed(const EmbedArgs& args) const override { reference::Embed(args); }
  void RmsNorm(const RmsNormArgs& args) const override { reference::RmsNorm(args); }
  void MatMul(const MatMulArgs& args) const override { reference::MatMul(args); }
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
