// Every op as plain loops in float32, in the order a reader would write them. Slow on purpose: this is the
// specification.
#pragma once

#include "kernels/embed.h"
#include "kernels/matmul.h"
#include "kernels/paged_attention.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace millrace::kernels::reference {

void Embed(const EmbedArgs& args);
void RmsNorm(const RmsNormArgs& args);
void MatMul(const MatMulArgs& args);
void AddPartials(const AddPartialsArgs& args);
void Rope(const RopeArgs& args);
void StoreKv(const StoreKvArgs& args);
void PagedAttention(const PagedAttentionArgs& args);
void SwiGlu(const SwiGluArgs& args);

}  // namespace millrace::kernels::reference
