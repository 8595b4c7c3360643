#ifdef MILLRACE_KERNELS_X86
#include <cpuid.h>
#endif

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/cpu/op_table.h"

namespace millrace::kernels {
namespace {

class CpuBackend : public Backend {
 public:
  CpuBackend(absl::string_view isa, const cpu::OpTable& ops) : isa_(isa), ops_(ops) {}

  // No instruction set in it: all of them give the same bits.
  std::string numeric_class() const override { return "cpu/f32"; }
  std::string name() const override { return absl::StrCat("cpu/", isa_); }

  void Embed(const EmbedArgs& args) const override { ops_.embed(args); }
  void RmsNorm(const RmsNormArgs& args) const override { ops_.rms_norm(args); }
  void MatMul(const MatMulArgs& args) const override { ops_.mat_mul(args); }
  void Rope(const RopeArgs& args) const override { ops_.rope(args); }
  void StoreKv(const StoreKvArgs& args) const override { ops_.store_kv(args); }
  void PagedAttention(const PagedAttentionArgs& args) const override { ops_.paged_attention(args); }
  void SwiGlu(const SwiGluArgs& args) const override { ops_.swiglu(args); }

 private:
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

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(absl::string_view isa) {
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
