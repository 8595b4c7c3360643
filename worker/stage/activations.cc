#include "worker/stage/activations.h"

#include <algorithm>

#include "common/check.h"
#include "common/status_macros.h"

namespace millrace {

absl::StatusOr<Activations> Activations::Allocate(const HyperParameters& hyper_parameters,
                                                  const kernels::Backend& backend, uint32_t max_rows) {
  const HyperParameters& h = hyper_parameters;
  const uint64_t attention_width = uint64_t{h.num_heads} * h.head_size;
  const uint64_t kv_width = uint64_t{h.num_kv_heads} * h.head_size;
  const uint64_t widest = std::max<uint64_t>({h.hidden_size, attention_width, h.ffn_size});
  const uint64_t scratch =
      std::max(backend.MatMulScratchFloats(max_rows, widest), backend.AttentionScratchFloats(h.head_size));
  Activations a;
  ASSIGN_OR_RETURN(a.normed, FloatBuffer::Allocate("normed activations", {max_rows, h.hidden_size}));
  ASSIGN_OR_RETURN(a.queries, FloatBuffer::Allocate("queries", {max_rows, attention_width}));
  ASSIGN_OR_RETURN(a.keys, FloatBuffer::Allocate("keys", {max_rows, kv_width}));
  ASSIGN_OR_RETURN(a.values, FloatBuffer::Allocate("values", {max_rows, kv_width}));
  ASSIGN_OR_RETURN(a.attended, FloatBuffer::Allocate("attention output", {max_rows, attention_width}));
  ASSIGN_OR_RETURN(a.gate, FloatBuffer::Allocate("FFN gate", {max_rows, h.ffn_size}));
  ASSIGN_OR_RETURN(a.up, FloatBuffer::Allocate("FFN up", {max_rows, h.ffn_size}));
  ASSIGN_OR_RETURN(a.scratch, FloatBuffer::Allocate("kernel scratch", {scratch}));
  a.token_ids.resize(max_rows);
  a.positions.resize(max_rows);
  a.segments.reserve(max_rows);
  return a;
}

void Activations::Enter(const StageBatch& batch, float* residual_stream) {
  residual = residual_stream;
  segments.clear();
  size_t row = 0;
  for (const StageSegment& segment : batch.segments) {
    MILLRACE_CHECK(segment.token_ids.size() <= positions.size() - row);
    segments.push_back({segment.block_ids.data(), segment.first_position, row, segment.token_ids.size()});
    for (size_t i = 0; i < segment.token_ids.size(); ++i, ++row) {
      token_ids[row] = segment.token_ids[i];
      positions[row] = segment.first_position + static_cast<uint32_t>(i);
    }
  }
}

uint64_t Activations::bytes() const {
  uint64_t bytes = (token_ids.size() + positions.size()) * sizeof(uint32_t) +
                   segments.capacity() * sizeof(kernels::KvSegment);
  for (const FloatBuffer* buffer : {&normed, &queries, &keys, &values, &attended, &gate, &up, &scratch}) {
    bytes += buffer->bytes();
  }
  return bytes;
}

}  // namespace millrace
