#ifdef MILLRACE_KERNELS_X86
#include <cpuid.h>
#endif

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/packed_layout.h"
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
  const size_t elements = args.weights.rows * args.weights.columns;
  // Packed ones have to come from somewhere, too.
  return args.weights.packed ? elements * (4 + args.x.rows) / 128 : elements * args.x.rows / 32;
}
size_t Quantize(size_t floats) {
  return floats / 16;
}
size_t Pack(size_t bytes) {
  return bytes / 8;
}
size_t Attention(const PagedAttentionArgs& args) {
  size_t positions = 0;
  for (const KvSegment& segment : args.segments) {
    positions += segment.rows * (segment.first_position + segment.rows);
  }
  return positions * args.heads * args.kv.head_size / 16;
}
size_t Store(const StoreKvArgs& args) {
  size_t rows = 0;
  for (const KvSegment& segment : args.segments) rows += segment.rows;
  return Copy(8 * rows * args.kv.kv_heads * args.kv.head_size);
}
size_t Exponentials(size_t floats) {
  return floats / 2;
}

}  // namespace cost

// A share is worth at least this much: several times what it costs to hand it out.
constexpr size_t kShareNanos = 2000;

struct Isa {
  std::string name;
  cpu::OpTable ops;
};

class CpuBackend : public Backend {
 public:
  CpuBackend(Isa isa, ActivationType activations, std::unique_ptr<ThreadTeam> team)
      : isa_(std::move(isa)), int8_(activations == ActivationType::kInt8), team_(std::move(team)) {}

  // No instruction set in it: all of them give the same bits.
  std::string numeric_class() const override { return int8_ ? "cpu/int8" : "cpu/f32"; }
  std::string name() const override { return absl::StrCat("cpu/", isa_.name); }

  size_t threads() const override { return team_->threads(); }
  void PinCaller() const override { team_->PinCaller(); }

  size_t PackedBytes(const WeightMatrix& weights) const override {
    return int8_ ? cpu::PackedMatrixBytes(weights) : 0;
  }
  WeightMatrix Pack(const WeightMatrix& weights, uint8_t* to) const override {
    Run(cpu::PackMatrix, cpu::PackArgs{weights, to}, cost::Pack(PackedBytes(weights)));
    WeightMatrix packed = weights;
    packed.data = to;
    packed.row_bytes = 0;
    packed.packed = true;
    return packed;
  }
  size_t MatMulScratchFloats(size_t /*max_rows*/, size_t max_columns) const override {
    return threads() * cpu::kPanelColumns * RoundUpToLanes(max_columns);
  }
  size_t AttentionScratchFloats(size_t head_size) const override {
    return cpu::AttentionScratchSize(head_size, threads());
  }
  size_t MatMulInputBytes(size_t max_rows, size_t columns) const override {
    if (!int8_ || columns % kActivationBlock != 0) return 0;
    return 2 * cpu::InputBlocks(max_rows, columns) * sizeof(cpu::InputBlock);
  }
  MatMulInput PrepareInput(const PrepareInputArgs& args) const override {
    MatMulInput input{args.x, args.rows, args.columns, nullptr};
    if (args.buffer == nullptr || MatMulInputBytes(args.rows, args.columns) == 0) return input;
    const cpu::QuantizeArgs quantize{args.x, args.rows, args.columns,
                                     reinterpret_cast<cpu::InputBlock*>(args.buffer), args.rounding};
    Run(isa_.ops.quantize, quantize, cost::Quantize(args.rows * args.columns));
    input.quantized = args.buffer;
    return input;
  }

  void Embed(const EmbedArgs& args) const override {
    Run(isa_.ops.embed, args, cost::Copy(args.rows * args.table.columns));
  }
  void RmsNorm(const RmsNormArgs& args) const override {
    Run(isa_.ops.rms_norm, args, cost::Copy(args.rows * args.columns));
  }
  void MatMul(const MatMulArgs& args) const override {
    Run(args.weights.packed ? isa_.ops.packed_mat_mul : isa_.ops.mat_mul, args, cost::Product(args));
  }
  void AddPartials(const AddPartialsArgs& args) const override {
    Run(isa_.ops.add_partials, args, cost::Copy(args.rows * (args.end - args.begin) * args.partials.size()));
  }
  void Rope(const RopeArgs& args) const override {
    Run(isa_.ops.rope, args, cost::Copy(4 * args.rows * args.heads * args.rope_dims));
  }
  void StoreKv(const StoreKvArgs& args) const override { Run(isa_.ops.store_kv, args, cost::Store(args)); }
  void PagedAttention(const PagedAttentionArgs& args) const override {
    const size_t nanos = cost::Attention(args);
    const size_t shares = Shares(nanos);
    if (!cpu::SplitsPay(args, shares)) return Run(isa_.ops.paged_attention, args, nanos);
    for (cpu::AttentionRound round = cpu::NextRound({&args, threads()}); round.begin < round.end;
         round = cpu::NextRound(round)) {
      Run(isa_.ops.attention_splits, round, nanos);
      Run(isa_.ops.attention_merge, round, nanos / 16);
    }
  }
  void SwiGlu(const SwiGluArgs& args) const override {
    Run(isa_.ops.swiglu, args, cost::Exponentials(args.count));
  }

 private:
  // `nanos`: what it would take one thread. Small ops stay on the calling one.
  size_t Shares(size_t nanos) const { return std::clamp<size_t>(nanos / kShareNanos, 1, team_->threads()); }
  template <class Args>
  void Run(void (*op)(const Args&, WorkShare), const Args& args, size_t nanos) const {
    team_->Run(Shares(nanos), [op, &args](WorkShare share) { op(args, share); });
  }

  const Isa isa_;
  const bool int8_;
  const std::unique_ptr<ThreadTeam> team_;
};

#ifdef MILLRACE_KERNELS_X86
// Clang does not know this one by name. Where AVX2 is usable, so are the registers it needs.
bool HasF16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool HasAvx512Vnni() {
  return HasAvx512() && __builtin_cpu_supports("avx512vnni");
}
#endif

absl::Status NotOnThisMachine(absl::string_view isa) {
  return absl::InvalidArgumentError(
      absl::StrCat("instruction set '", isa, "' is not on this machine; use 'auto' or 'portable'"));
}

// The best for "auto", else the one asked for.
absl::StatusOr<Isa> ChooseIsa(const std::string& isa) {
  if (isa != "auto" && isa != "portable" && isa != "avx2" && isa != "avx512" && isa != "avx512vnni") {
    return absl::InvalidArgumentError(absl::StrCat(
        "unknown instruction set '", isa, "'; use 'auto', 'portable', 'avx2', 'avx512' or 'avx512vnni'"));
  }
#ifdef MILLRACE_KERNELS_X86
  if (HasAvx512Vnni() && (isa == "auto" || isa == "avx512vnni")) {
    Isa vnni{"avx512vnni", cpu::kAvx512Ops};
    vnni.ops.packed_mat_mul = cpu::kAvx512VnniPackedMatMul;
    return vnni;
  }
  if (HasAvx512() && (isa == "auto" || isa == "avx512")) return Isa{"avx512", cpu::kAvx512Ops};
  if (HasAvx2() && (isa == "auto" || isa == "avx2")) return Isa{"avx2", cpu::kAvx2Ops};
#endif
  if (isa != "auto" && isa != "portable") return NotOnThisMachine(isa);
  return Isa{"portable", cpu::kPortableOps};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options) {
  absl::StatusOr<Isa> isa = ChooseIsa(options.isa);
  if (!isa.ok()) return isa.status();
  absl::StatusOr<std::unique_ptr<ThreadTeam>> team = ThreadTeam::Create(options.threads, options.cores);
  if (!team.ok()) return team.status();
  return std::make_unique<CpuBackend>(*std::move(isa), options.activations, *std::move(team));
}

}  // namespace millrace::kernels
