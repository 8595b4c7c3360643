// The ops of the CUDA backend: each enqueues its kernels on a queue. Contracts as in the header of the op
// (kernels/matmul.h, ...); each pair of files <op>.h, <op>.cu says how.
#pragma once

#include <cstddef>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_queue.h"

namespace millrace::kernels::cuda {

// Products with quantised weights, F16, BF16 and F32 ones: matmul*.{h,cu}, pack.{h,cc}, prepare_input.{h,cu}.
size_t PackedBytes(const WeightMatrix& weights);
WeightMatrix Pack(const CudaQueue& queue, const WeightMatrix& weights, uint8_t* to);
size_t MatMulScratchFloats(size_t max_rows, size_t max_columns);
size_t MatMulInputBytes(size_t max_rows, size_t columns);
MatMulInput PrepareInput(const CudaQueue& queue, const PrepareInputArgs& args);
MatMulInput NormAndPrepare(const CudaQueue& queue, const NormAndPrepareArgs& args);
MatMulInput SwiGluAndPrepare(const CudaQueue& queue, const SwiGluAndPrepareArgs& args);
void MatMulAll(const CudaQueue& queue, absl::Span<const MatMulArgs> products);

// elementwise.{h,cu}
void Embed(const CudaQueue& queue, const EmbedArgs& args);
void RmsNorm(const CudaQueue& queue, const RmsNormArgs& args);
void Rope(const CudaQueue& queue, const RopeArgs& args);
void SwiGlu(const CudaQueue& queue, const SwiGluArgs& args);
void AddPartials(const CudaQueue& queue, const AddPartialsArgs& args);

// batch_tables.{h,cc}, store_kv.{h,cu}, paged_attention.{h,cu}
size_t BatchBytes(size_t max_rows, size_t context_tokens, size_t block_tokens);
BatchRows PlaceBatch(const CudaQueue& queue, const PlaceBatchArgs& args);
void StoreKv(const CudaQueue& queue, const StoreKvArgs& args);
void RopeAndStoreKv(const CudaQueue& queue, const RopeAndStoreKvArgs& args);
size_t AttentionScratch(const AttentionSizes& sizes);
void PagedAttention(const CudaQueue& queue, const PagedAttentionArgs& args);

}  // namespace millrace::kernels::cuda
