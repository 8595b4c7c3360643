// Pairs of ops that a layer always runs one after the other, for backends that do better with both at once.
#pragma once

#include "kernels/matmul_input.h"
#include "kernels/paged_attention.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace millrace::kernels {

// RmsNorm, then PrepareInput of what it wrote. REQUIRES: prepare.x == norm.out, of the same rows and columns.
struct NormAndPrepareArgs {
  RmsNormArgs norm;
  PrepareInputArgs prepare;
};

// Rope of queries and of keys, then StoreKv of the keys. REQUIRES: store.keys == keys.x.
struct RopeAndStoreKvArgs {
  RopeArgs queries;
  RopeArgs keys;
  StoreKvArgs store;
};

// SwiGlu, then PrepareInput of what it wrote. REQUIRES: prepare.x == swiglu.out, swiglu.count == rows *
// columns. swiglu.out is written only where the prepared input needs it.
struct SwiGluAndPrepareArgs {
  SwiGluArgs swiglu;
  PrepareInputArgs prepare;
};

}  // namespace millrace::kernels
