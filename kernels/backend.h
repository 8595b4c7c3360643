// The table of ops of one backend. One layer implementation (worker/stage) serves every backend through it.
//
// Every op: pointers are to float32 unless typed otherwise, row-major, not overlapping unless the op's header
// says so. A row's result has the same bits whatever other rows are in the call (see docs/DECISIONS.md, "same
// bits").
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/embed.h"
#include "kernels/matmul.h"
#include "kernels/paged_attention.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace millrace::kernels {

// Stateless. Thread: any, but each call's buffers belong to the caller.
class Backend {
 public:
  virtual ~Backend() = default;
  // Results have equal bits between workers whose numeric class is equal: "cpu/f32" for every CPU instruction
  // set.
  virtual std::string numeric_class() const = 0;
  virtual std::string name() const = 0;  // for people: instruction set in use

  virtual void Embed(const EmbedArgs& args) const = 0;
  virtual void RmsNorm(const RmsNormArgs& args) const = 0;
  virtual void MatMul(const MatMulArgs& args) const = 0;
  virtual void Rope(const RopeArgs& args) const = 0;
  virtual void StoreKv(const StoreKvArgs& args) const = 0;
  virtual void PagedAttention(const PagedAttentionArgs& args) const = 0;
  virtual void SwiGlu(const SwiGluArgs& args) const = 0;
};

// `isa`: "auto" (the best this machine has), "portable", "avx2" or "avx512". INVALID_ARGUMENT: unknown, or
// not on this machine.
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(absl::string_view isa);

// Plain loops in float, the specification the others are tested against.
std::unique_ptr<Backend> MakeReferenceBackend();

}  // namespace millrace::kernels
