// The CPU ops as compiled for each instruction set.
#pragma once

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/embed.h"
#include "kernels/matmul.h"
#include "kernels/paged_attention.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

struct QuantizeArgs {
  const float* x = nullptr;  // [rows, columns]
  size_t rows = 0;
  size_t columns = 0;         // a multiple of kActivationBlock
  InputBlock* out = nullptr;  // InputBlocks(rows, columns), and refinements for as many
  InputRounding rounding = InputRounding::kPlain;
};

using PackedMatMulOp = void (*)(const MatMulArgs&, WorkShare);

// Each does one share of the work of its call; all shares together do the whole, in any order and at the same
// time.
struct OpTable {
  void (*embed)(const EmbedArgs&, WorkShare);
  void (*rms_norm)(const RmsNormArgs&, WorkShare);
  void (*mat_mul)(const MatMulArgs&, WorkShare);
  void (*add_partials)(const AddPartialsArgs&, WorkShare);
  void (*rope)(const RopeArgs&, WorkShare);
  void (*store_kv)(const StoreKvArgs&, WorkShare);
  void (*paged_attention)(const PagedAttentionArgs&, WorkShare);  // by whole items
  // The same in two phases a round (see attention_plan.h); all of the first come before the second.
  void (*attention_splits)(const AttentionRound&, WorkShare);
  void (*attention_merge)(const AttentionRound&, WorkShare);
  void (*swiglu)(const SwiGluArgs&, WorkShare);
  void (*quantize)(const QuantizeArgs&, WorkShare);
  PackedMatMulOp packed_mat_mul;
};

extern const OpTable kPortableOps;
// x86 builds only. REQUIRES of whoever calls through them: the machine has the instruction set.
extern const OpTable kAvx2Ops;
extern const OpTable kAvx512Ops;
// With VNNI only this one is better.
extern const PackedMatMulOp kAvx512VnniPackedMatMul;

}  // namespace millrace::kernels::cpu
