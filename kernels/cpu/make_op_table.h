// Instantiates every CPU op for one instruction set.
#pragma once

#include "kernels/cpu/add_partials_impl.h"
#include "kernels/cpu/embed_impl.h"
#include "kernels/cpu/matmul_impl.h"
#include "kernels/cpu/matmul_int8_impl.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/paged_attention_impl.h"
#include "kernels/cpu/quantize_impl.h"
#include "kernels/cpu/rms_norm_impl.h"
#include "kernels/cpu/rope_impl.h"
#include "kernels/cpu/store_kv_impl.h"
#include "kernels/cpu/swiglu_impl.h"
#include "kernels/cpu/vec.h"

namespace millrace::kernels::cpu {

// Int8: its engine (int8_portable.h).
template <class Int8>
constexpr OpTable MakeOpTable() {
  using V = Vec<typename Int8::Part>;
  return {Embed<V>,          RmsNorm<V>, MatMul<V>,         AddPartials<V>,
          Rope<V>,           StoreKv<V>, PagedAttention<V>, AttentionSplits<V>,
          AttentionMerge<V>, SwiGlu<V>,  Quantize<Int8>,    PackedMatMul<Int8>};
}

}  // namespace millrace::kernels::cpu
