// The CPU ops as compiled for each instruction set.
#pragma once

#include "kernels/embed.h"
#include "kernels/matmul.h"
#include "kernels/paged_attention.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace millrace::kernels::cpu {

struct OpTable {
  void (*embed)(const EmbedArgs&);
  void (*rms_norm)(const RmsNormArgs&);
  void (*mat_mul)(const MatMulArgs&);
  void (*rope)(const RopeArgs&);
  void (*store_kv)(const StoreKvArgs&);
  void (*paged_attention)(const PagedAttentionArgs&);
  void (*swiglu)(const SwiGluArgs&);
};

extern const OpTable kPortableOps;
// x86 builds only. REQUIRES of whoever calls through them: the machine has the instruction set.
extern const OpTable kAvx2Ops;
extern const OpTable kAvx512Ops;

}  // namespace millrace::kernels::cpu
