// Instantiates every CPU op for one register type.
#pragma once

#include "kernels/cpu/add_partials_impl.h"
#include "kernels/cpu/embed_impl.h"
#include "kernels/cpu/matmul_impl.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/paged_attention_impl.h"
#include "kernels/cpu/rms_norm_impl.h"
#include "kernels/cpu/rope_impl.h"
#include "kernels/cpu/store_kv_impl.h"
#include "kernels/cpu/swiglu_impl.h"
#include "kernels/cpu/vec.h"

namespace millrace::kernels::cpu {

template <class Part>
constexpr OpTable MakeOpTable() {
  using V = Vec<Part>;
  return {Embed<V>, RmsNorm<V>, MatMul<V>, AddPartials<V>, Rope<V>, StoreKv<V>, PagedAttention<V>, SwiGlu<V>};
}

}  // namespace millrace::kernels::cpu
