#include "worker/stage/activations.h"

#include <algorithm>

#include "common/check.h"
#include "common/status_macros.h"

namespace millrace {

absl::StatusOr<Activations> Activations::Allocate(const HyperParameters& hyper_parameters, Device& device,
                                                  const Sizes& sizes) {
  const kernels::Backend& backend = device.ops();
  const HyperParameters& h = hyper_parameters;
  const uint64_t rows = sizes.max_rows;
  const uint64_t attention_width = uint64_t{sizes.slice.heads.size()} * h.head_size;
  const uint64_t kv_width = uint64_t{sizes.slice.kv_heads.size()} * h.head_size;
  const uint64_t ffn = sizes.slice.ffn.size();
  uint64_t prepared = 0;
  uint64_t scratch =
      backend.AttentionScratch({rows, sizes.slice.heads.size(), h.head_size, sizes.context_tokens});
  for (uint64_t columns : {uint64_t{h.hidden_size}, attention_width, ffn}) {
    prepared = std::max<uint64_t>(prepared, backend.MatMulInputBytes(rows, columns));
    scratch = std::max<uint64_t>(scratch, backend.MatMulScratchFloats(rows, columns));
  }
  Activations a;
  a.block_tokens = sizes.block_tokens;
  a.context_tokens = sizes.context_tokens;
  if (!device.on_host()) {
    ASSIGN_OR_RETURN(a.own_residual, FloatBuffer::Allocate(device, "residual stream", {rows, h.hidden_size}));
  }
  const uint64_t tables = backend.BatchBytes(rows, sizes.context_tokens, sizes.block_tokens);
  if (tables != 0) {
    ASSIGN_OR_RETURN(a.tables, device.Allocate("tables of a microbatch", tables));
    ASSIGN_OR_RETURN(a.tables_staging, device.AllocateStaging("tables of a microbatch", tables));
  }
  ASSIGN_OR_RETURN(a.normed, FloatBuffer::Allocate(device, "normed activations", {rows, h.hidden_size}));
  ASSIGN_OR_RETURN(a.queries, FloatBuffer::Allocate(device, "queries", {rows, attention_width}));
  ASSIGN_OR_RETURN(a.keys, FloatBuffer::Allocate(device, "keys", {rows, kv_width}));
  ASSIGN_OR_RETURN(a.values, FloatBuffer::Allocate(device, "values", {rows, kv_width}));
  ASSIGN_OR_RETURN(a.attended, FloatBuffer::Allocate(device, "attention output", {rows, attention_width}));
  ASSIGN_OR_RETURN(a.gate, FloatBuffer::Allocate(device, "FFN gate", {rows, ffn}));
  ASSIGN_OR_RETURN(a.up, FloatBuffer::Allocate(device, "FFN up", {rows, ffn}));
  ASSIGN_OR_RETURN(a.prepared,
                   FloatBuffer::Allocate(device, "prepared activations", {prepared / sizeof(float) + 1}));
  ASSIGN_OR_RETURN(a.scratch, FloatBuffer::Allocate(device, "kernel scratch", {scratch}));
  a.token_ids.resize(rows);
  a.positions.resize(rows);
  a.segments.reserve(rows);
  return a;
}

void Activations::Enter(const StageBatch& batch) {
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

void Activations::Place(const kernels::Backend& backend, size_t place, float* residual_stream) {
  residual = residual_stream;
  kernels::PlaceBatchArgs args;
  args.segments = segments;
  args.positions = positions.data();
  args.rows = place;
  args.max_rows = max_rows();
  args.block_tokens = block_tokens;
  args.context_tokens = context_tokens;
  args.buffer = tables.data();
  args.staging = tables_staging.data();
  rows = backend.PlaceBatch(args);
}

uint64_t Activations::bytes() const {
  uint64_t bytes = (token_ids.size() + positions.size()) * sizeof(uint32_t) +
                   segments.capacity() * sizeof(kernels::KvSegment) + tables.bytes();
  for (const FloatBuffer* buffer :
       {&own_residual, &normed, &queries, &keys, &values, &attended, &gate, &up, &prepared, &scratch}) {
    bytes += buffer->bytes();
  }
  return bytes;
}

}  // namespace millrace
