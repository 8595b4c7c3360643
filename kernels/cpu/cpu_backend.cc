#ifdef MILLRACE_KERNELS_X86
#include <cpuid.h>
#endif

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/tile_sizes.h"
#include "kernels/cpu/vec.h"

namespace millrace::kernels {
namespace {

size_t RoundUpToLanes(size_t n) {
  return (n + cpu::kVecLanes - 1) / cpu::kVecLanes * cpu::kVecLanes;
}

class CpuBackend : public Backend {
 public:
  CpuBackend(absl::string_view isa, const cpu::OpTable& ops) : isa_(isa), ops_(ops) {}

  // No instruction set in it: all of them give the same bits.
  std::string numeric_class() const override { return "cpu/f32"; }
  std::string name() const override { return absl::StrCat("cpu/", isa_); }

  size_t threads() const override { return 1; }

  size_t PackedBytes(const WeightMatrix&) const override { return 0; }
  WeightMatrix Pack(const WeightMatrix& weights, uint8_t*) const override { return weights; }
  size_t MatMulScratchFloats(size_t /*max_rows*/, size_t max_columns) const override {
    return threads() * cpu::kPanelColumns * RoundUpToLanes(max_columns);
  }
  size_t AttentionScratchFloats(size_t max_context_tokens, size_t /*heads*/,
                                size_t /*kv_heads*/) const override {
    return cpu::kMaxAttentionQueries * RoundUpToLanes(max_context_tokens);
  }
  size_t MatMulInputBytes(size_t, size_t) const override { return 0; }
  MatMulInput PrepareInput(const PrepareInputArgs& args) const override {
    return {args.x, args.rows, args.columns, nullptr, nullptr, nullptr};
  }

  void Embed(const EmbedArgs& args) const override { Run(ops_.embed, args); }
  void RmsNorm(const RmsNormArgs& args) const override { Run(ops_.rms_norm, args); }
  void MatMul(const MatMulArgs& args) const override { Run(ops_.mat_mul, args); }
  void AddPartials(const AddPartialsArgs& args) const override { Run(ops_.add_partials, args); }
  void Rope(const RopeArgs& args) const override { Run(ops_.rope, args); }
  void StoreKv(const StoreKvArgs& args) const override { Run(ops_.store_kv, args); }
  void PagedAttention(const PagedAttentionArgs& args) const override { Run(ops_.paged_attention, args); }
  void SwiGlu(const SwiGluArgs& args) const override { Run(ops_.swiglu, args); }

 private:
  template <class Args>
  void Run(void (*op)(const Args&, WorkShare), const Args& args) const {
    op(args, WorkShare{});
  }

  const std::string isa_;
  const cpu::OpTable& ops_;
};

#ifdef MILLRACE_KERNELS_X86
// Clang does not know this one by name. Where AVX2 is usable, so are the registers it needs.
bool HasF16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

bool HasAvx2() {
#ifdef MILLRACE_KERNELS_X86
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
#else
  return false;
#endif
}

bool HasAvx512() {
#ifdef MILLRACE_KERNELS_X86
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

absl::Status NotOnThisMachine(absl::string_view isa) {
  return absl::InvalidArgumentError(
      absl::StrCat("instruction set '", isa, "' is not on this machine; use 'auto' or 'portable'"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options) {
  const std::string& isa = options.isa;
  if (isa != "auto" && isa != "portable" && isa != "avx2" && isa != "avx512") {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown instruction set '", isa, "'; use 'auto', 'portable', 'avx2' or 'avx512'"));
  }
#ifdef MILLRACE_KERNELS_X86
  if (HasAvx512() && (isa == "auto" || isa == "avx512")) {
    return std::make_unique<CpuBackend>("avx512", cpu::kAvx512Ops);
  }
  if (HasAvx2() && (isa == "auto" || isa == "avx2"))
    return std::make_unique<CpuBackend>("avx2", cpu::kAvx2Ops);
#endif
  if (isa == "avx512" || isa == "avx2") return NotOnThisMachine(isa);
  return std::make_unique<CpuBackend>("portable", cpu::kPortableOps);
}

}  // namespace millrace::kernels
