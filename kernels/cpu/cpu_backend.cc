#ifdef MILLRACE_KERNELS_X86
#include <cpuid.h>
#endif

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/cpu/tile_sizes.h"
#include "kernels/cpu/vec.h"

namespace millrace::kernels {
namespace {

size_t RoundUpToLanes(size_t n) {
  return (n + cpu::kVecLanes - 1) / cpu::kVecLanes * cpu::kVecLanes;
}

// One thread's time for an op, roughly, in nanoseconds: only for how many threads share it. From what the ops
// take with AVX-512 and data in the caches, so at the short end.
namespace cost {

size_t Copy(size_t floats) {
  return floats / 8;
}
size_t Product(const MatMulArgs& args) {
  return args.x.rows * args.weights.rows * args.weights.columns / 32;
}
size_t Attention(const PagedAttentionArgs& args) {
  return args.rows * args.heads * args.kv.head_size * (args.first_position + args.rows) / 16;
}
size_t Exponentials(size_t floats) {
  return floats / 2;
}

}  // namespace cost

// A share is worth at least this much: several times what it costs to hand it out.
constexpr size_t kShareNanos = 2000;

class CpuBackend : public Backend {
 public:
  CpuBackend(absl::string_view isa, const cpu::OpTable& ops, std::unique_ptr<ThreadTeam> team)
      : isa_(isa), ops_(ops), team_(std::move(team)) {}

  // No instruction set in it: all of them give the same bits.
  std::string numeric_class() const override { return "cpu/f32"; }
  std::string name() const override { return absl::StrCat("cpu/", isa_); }

  size_t threads() const override { return team_->threads(); }
  void PinCaller() const override { team_->PinCaller(); }

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

  void Embed(const EmbedArgs& args) const override {
    Run(ops_.embed, args, cost::Copy(args.rows * args.table.columns));
  }
  void RmsNorm(const RmsNormArgs& args) const override {
    Run(ops_.rms_norm, args, cost::Copy(args.rows * args.columns));
  }
  void MatMul(const MatMulArgs& args) const override { Run(ops_.mat_mul, args, cost::Product(args)); }
  void AddPartials(const AddPartialsArgs& args) const override {
    Run(ops_.add_partials, args, cost::Copy(args.rows * (args.end - args.begin) * args.partials.size()));
  }
  void Rope(const RopeArgs& args) const override {
    Run(ops_.rope, args, cost::Copy(4 * args.rows * args.heads * args.rope_dims));
  }
  void StoreKv(const StoreKvArgs& args) const override {
    Run(ops_.store_kv, args, cost::Copy(8 * args.rows * args.kv.kv_heads * args.kv.head_size));
  }
  void PagedAttention(const PagedAttentionArgs& args) const override {
    Run(ops_.paged_attention, args, cost::Attention(args));
  }
  void SwiGlu(const SwiGluArgs& args) const override {
    Run(ops_.swiglu, args, cost::Exponentials(args.count));
  }

 private:
  // `nanos`: what it would take one thread. Small ops stay on the calling one.
  template <class Args>
  void Run(void (*op)(const Args&, WorkShare), const Args& args, size_t nanos) const {
    const size_t shares = std::clamp<size_t>(nanos / kShareNanos, 1, team_->threads());
    team_->Run(shares, [op, &args](WorkShare share) { op(args, share); });
  }

  const std::string isa_;
  const cpu::OpTable& ops_;
  const std::unique_ptr<ThreadTeam> team_;
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
  absl::StatusOr<std::unique_ptr<ThreadTeam>> team = ThreadTeam::Create(options.threads, options.cores);
  if (!team.ok()) return team.status();
#ifdef MILLRACE_KERNELS_X86
  if (HasAvx512() && (isa == "auto" || isa == "avx512")) {
    return std::make_unique<CpuBackend>("avx512", cpu::kAvx512Ops, *std::move(team));
  }
  if (HasAvx2() && (isa == "auto" || isa == "avx2"))
    return std::make_unique<CpuBackend>("avx2", cpu::kAvx2Ops, *std::move(team));
#endif
  if (isa == "avx512" || isa == "avx2") return NotOnThisMachine(isa);
  return std::make_unique<CpuBackend>("portable", cpu::kPortableOps, *std::move(team));
}

}  // namespace millrace::kernels
