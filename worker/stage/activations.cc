#include "worker/stage/activations.h"

#include <algorithm>

#include "common/check.h"
#include "common/status_macros.h"

namespace millrace {

absl::StatusOr<Activations> Activations::Allocate(const HyperParameters& hyper_parameters,
                                                  const kernels::Backend& backend, const Sizes& sizes) {
  const HyperParameters& h = hyper_parameters;
  const uint64_t rows = sizes.max_rows;
  const uint64_t attention_width = uint64_t{sizes.slice.heads.size()} * h.head_size;
  const uint64_t kv_width = uint64_t{sizes.slice.kv_heads.size()} * h.head_size;
  const uint64_t ffn = sizes.slice.ffn.size();
  uint64_t prepared = 0;
  uint64_t scratch = backend.AttentionScratchFloats(h.head_size);
  for (uint64_t columns : {uint64_t{h.hidden_size}, attention_width, ffn}) {
    prepared = std::max<uint64_t>(prepared, backend.MatMulInputBytes(rows, columns));
    scratch = std::max<uint64_t>(scratch, backend.MatMulScratchFloats(rows, columns));
  }
  Activations a;
  ASSIGN_OR_RETURN(a.normed, FloatBuffer::Allocate("normed activations", {rows, h.hidden_size}));
  ASSIGN_OR_RETURN(a.queries, FloatBuffer::Allocate("queries", {rows, attention_width}));
  ASSIGN_OR_RETURN(a.keys, FloatBuffer::Allocate("keys", {rows, kv_width}));
  ASSIGN_OR_RETURN(a.values, FloatBuffer::Allocate("values", {rows, kv_width}));
  ASSIGN_OR_RETURN(a.attended, FloatBuffer::Allocate("attention output", {rows, attention_width}));
  ASSIGN_OR_RETURN(a.gate, FloatBuffer::Allocate("FFN gate", {rows, ffn}));
  ASSIGN_OR_RETURN(a.up, FloatBuffer::Allocate("FFN up", {rows, ffn}));
  ASSIGN_OR_RETURN(a.prepared, FloatBuffer::Allocate("prepared activations", {prepared / sizeof(float) + 1}));
  ASSIGN_OR_RETURN(a.scratch, FloatBuffer::Allocate("kernel scratch", {scratch}));
  a.token_ids.resize(rows);
  a.positions.resize(rows);
  a.segments.reserve(rows);
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
  for (const FloatBuffer* buffer :
       {&normed, &queries, &keys, &values, &attended, &gate, &up, &prepared, &scratch}) {
    bytes += buffer->bytes();
  }
  return bytes;
}

}  // namespace millrace
