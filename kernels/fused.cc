#include "kernels/fused.h"

#include "kernels/backend.h"

namespace millrace::kernels {

MatMulInput Backend::NormAndPrepare(const NormAndPrepareArgs& args) const {
  RmsNorm(args.norm);
  return PrepareInput(args.prepare);
}

void Backend::MatMulAll(absl::Span<const MatMulArgs> products) const {
  for (const MatMulArgs& product : products) MatMul(product);
}

void Backend::RopeAndStoreKv(const RopeAndStoreKvArgs& args) const {
  Rope(args.queries);
  Rope(args.keys);
  StoreKv(args.store);
}

MatMulInput Backend::SwiGluAndPrepare(const SwiGluAndPrepareArgs& args) const {
  SwiGlu(args.swiglu);
  return PrepareInput(args.prepare);
}

}  // namespace millrace::kernels
