// The table of ops of one backend. One layer implementation (worker/stage) serves every backend through it.
//
// Every op: pointers are to the backend's memory (Device::Allocate in worker/device; host memory for CPU
// backends), but for what a header says is in host memory; work may go on after an op returns, in the order
// of calls (Device::Finish waits). Pointers are to float32 unless typed otherwise, row-major, not overlapping
// unless the op's header says so. A row's result has the same bits whatever other rows are in the call (see
// docs/DECISIONS.md, "same bits").
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/batch.h"
#include "kernels/embed.h"
#include "kernels/fused.h"
#include "kernels/matmul.h"
#include "kernels/matmul_input.h"
#include "kernels/paged_attention.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/sample.h"
#include "kernels/swiglu.h"

namespace millrace::kernels {

// Thread: one at a time (its threads are shared by all calls); each call's buffers belong to the caller.
class Backend {
 public:
  virtual ~Backend() = default;
  // Results have equal bits between workers whose numeric class is equal: "cpu/f32" or "cpu/int8" (see
  // ActivationType) for every CPU instruction set.
  virtual std::string numeric_class() const = 0;
  virtual std::string name() const = 0;  // for people: instruction set in use
  // Threads that work on each op, the caller included.
  virtual size_t threads() const = 0;
  // Confines the calling thread, and those it starts later, to its core, if the backend's threads have cores
  // of their own.
  virtual void PinCaller() const {}

  // Bytes of `weights` as this backend wants them; 0: as they are. What Pack writes is for any backend of the
  // same process and numeric class.
  virtual size_t PackedBytes(const WeightMatrix& weights) const = 0;
  // REQUIRES: PackedBytes(weights) is not 0; `to` has that many bytes, 64-byte aligned.
  virtual WeightMatrix Pack(const WeightMatrix& weights, uint8_t* to) const = 0;

  // Working memory of one op, for all threads.
  virtual size_t MatMulScratchFloats(size_t max_rows, size_t max_columns) const = 0;
  virtual size_t AttentionScratchFloats(size_t head_size) const = 0;  // whatever rows and contexts
  // Of attention no larger than that; more than AttentionScratchFloats where rows and contexts matter.
  virtual size_t AttentionScratch(const AttentionSizes& sizes) const {
    return AttentionScratchFloats(sizes.head_size);
  }
  virtual size_t MatMulInputBytes(size_t max_rows, size_t columns) const = 0;  // of PrepareInputArgs.buffer

  // What MatMul takes. Points to args.x and args.buffer.
  virtual MatMulInput PrepareInput(const PrepareInputArgs& args) const = 0;

  // Bytes of each PlaceBatchArgs buffer, where no sequence is longer than context_tokens. 0: none is needed.
  virtual size_t BatchBytes(size_t /*max_rows*/, size_t /*context_tokens*/, size_t /*block_tokens*/) const {
    return 0;
  }
  virtual BatchRows PlaceBatch(const PlaceBatchArgs& args) const {
    return {args.rows, args.positions, args.segments, nullptr};
  }

  virtual void Embed(const EmbedArgs& args) const = 0;
  virtual void RmsNorm(const RmsNormArgs& args) const = 0;
  virtual void MatMul(const MatMulArgs& args) const = 0;
  virtual void AddPartials(const AddPartialsArgs& args) const = 0;
  virtual void Rope(const RopeArgs& args) const = 0;
  virtual void StoreKv(const StoreKvArgs& args) const = 0;
  virtual void PagedAttention(const PagedAttentionArgs& args) const = 0;
  virtual void SwiGlu(const SwiGluArgs& args) const = 0;

  // Several ops in one, with the bits of one after the other, which is what they do unless a backend knows
  // better.
  virtual MatMulInput NormAndPrepare(const NormAndPrepareArgs& args) const;
  virtual void MatMulAll(absl::Span<const MatMulArgs> products) const;  // of one input; outs do not overlap
  virtual void RopeAndStoreKv(const RopeAndStoreKvArgs& args) const;
  virtual MatMulInput SwiGluAndPrepare(const SwiGluAndPrepareArgs& args) const;

  // Bytes of SampleArgs.buffer and staging; 0: this backend does not sample, the host does.
  virtual size_t SampleBytes(size_t /*max_rows*/, size_t /*vocabulary*/) const { return 0; }
  virtual size_t SampleStagingBytes(size_t /*max_rows*/) const { return 0; }
  virtual void Sample(const SampleArgs& /*args*/) const {}
};

// What MatMul multiplies weights by. Products are summed in float32 either way.
enum class ActivationType {
  kF32,   // the activations as they are
  kInt8,  // packed weights (Pack): activations rounded to 8 bits; others, F32, F16 and BF16 weights above
          // all: as kF32
};

struct CpuBackendOptions {
  std::string isa = "auto";  // the best this machine has; or "portable", "avx2", "avx512", "avx512vnni"
  ActivationType activations = ActivationType::kF32;
  size_t threads = 1;  // that work on each op, the caller included
  // Thread i of them runs on cores[i % cores.size()] only; the caller, thread 0, once it asks for that
  // (PinCaller). Empty: wherever the system puts them.
  std::vector<int> cores = {};
};

// INVALID_ARGUMENT: an unknown instruction set, or one that is not on this machine; no threads or too many; a
// core that this process may not use. RESOURCE_EXHAUSTED: the system gives no more threads.
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options);

// Plain loops in float, the specification the others are tested against.
std::unique_ptr<Backend> MakeReferenceBackend();

}  // namespace millrace::kernels
