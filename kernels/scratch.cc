#include "kernels/cpu/tile_sizes.h"
#include "kernels/cpu/vec.h"
#include "kernels/matmul.h"
#include "kernels/paged_attention.h"

namespace millrace::kernels {
namespace {

size_t RoundUpToLanes(size_t n) {
  return (n + cpu::kVecLanes - 1) / cpu::kVecLanes * cpu::kVecLanes;
}

}  // namespace

size_t MatMulScratchFloats(size_t /*max_rows*/, size_t max_columns) {
  return cpu::kPanelColumns * RoundUpToLanes(max_columns);
}

size_t AttentionScratchFloats(size_t max_context_tokens, size_t /*heads*/, size_t /*kv_heads*/) {
  return cpu::kMaxAttentionQueries * RoundUpToLanes(max_context_tokens);
}

}  // namespace millrace::kernels
