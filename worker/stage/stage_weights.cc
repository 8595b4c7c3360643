#include "worker/stage/stage_weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "common/check.h"

namespace millrace {
namespace {

kernels::WeightType KernelType(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return kernels::WeightType::kF32;
    case TensorType::kF16:
      return kernels::WeightType::kF16;
    case TensorType::kBF16:
      return kernels::WeightType::kBF16;
    case TensorType::kQ8_0:
      return kernels::WeightType::kQ8_0;
    case TensorType::kQ4_0:
      return kernels::WeightType::kQ4_0;
    case TensorType::kQ4_1:
      return kernels::WeightType::kQ4_1;
    case TensorType::kQ5_0:
      return kernels::WeightType::kQ5_0;
    case TensorType::kQ4_K:
      return kernels::WeightType::kQ4_K;
    case TensorType::kQ5_K:
      return kernels::WeightType::kQ5_K;
    case TensorType::kQ6_K:
      return kernels::WeightType::kQ6_K;
  }
  MILLRACE_CHECK(false);
  return kernels::WeightType::kF32;
}

kernels::WeightMatrix Matrix(const TensorInfo* tensor) {
  MILLRACE_CHECK(tensor != nullptr && tensor->shape.size() == 2);
  kernels::WeightMatrix matrix;
  matrix.data = tensor->bytes.data();
  matrix.type = KernelType(tensor->type);
  matrix.columns = tensor->shape[0];
  matrix.rows = tensor->shape[1];
  const TensorTypeLayout block = LayoutOf(tensor->type);
  matrix.row_bytes = matrix.columns / block.elements * block.bytes;
  MILLRACE_CHECK(matrix.row_bytes * matrix.rows == tensor->bytes.size());
  return matrix;
}

// Rows of a matrix: `range`, in units of `unit` rows.
kernels::WeightMatrix Rows(const TensorInfo* tensor, const ShardRange& range, uint32_t unit) {
  kernels::WeightMatrix matrix = Matrix(tensor);
  MILLRACE_CHECK(size_t{range.end} * unit <= matrix.rows);
  matrix.data += size_t{range.begin} * unit * matrix.row_bytes;
  matrix.rows = size_t{range.size()} * unit;
  return matrix;
}

kernels::WeightMatrix Columns(const TensorInfo* tensor, const ShardRange& range, uint32_t unit) {
  kernels::WeightMatrix matrix = Matrix(tensor);
  const size_t block = kernels::WeightBlockElements(matrix.type);
  const size_t begin = size_t{range.begin} * unit;
  const size_t end = size_t{range.end} * unit;
  MILLRACE_CHECK(end <= matrix.columns && begin % block == 0 && end % block == 0);
  matrix.data += begin / block * kernels::WeightBlockBytes(matrix.type);
  matrix.columns = end - begin;
  return matrix;
}

FloatTensor Floats(const TensorInfo* tensor) {
  MILLRACE_CHECK(tensor != nullptr && tensor->type == TensorType::kF32);
  std::vector<float> floats(tensor->bytes.size() / sizeof(float));
  std::memcpy(floats.data(), tensor->bytes.data(), floats.size() * sizeof(float));
  return FloatTensor(std::move(floats), tensor->bytes);
}

LayerWeights ReadLayer(const LayerTensors& tensors, const ShardSlice& slice, uint32_t head_size) {
  LayerWeights layer;
  layer.attn_norm = Floats(tensors.attn_norm);
  layer.attn_q = Rows(tensors.attn_q, slice.heads, head_size);
  layer.attn_k = Rows(tensors.attn_k, slice.kv_heads, head_size);
  layer.attn_v = Rows(tensors.attn_v, slice.kv_heads, head_size);
  layer.attn_output = Columns(tensors.attn_output, slice.heads, head_size);
  layer.ffn_norm = Floats(tensors.ffn_norm);
  layer.ffn_gate = Rows(tensors.ffn_gate, slice.ffn, 1);
  layer.ffn_up = Rows(tensors.ffn_up, slice.ffn, 1);
  layer.ffn_down = Columns(tensors.ffn_down, slice.ffn, 1);
  return layer;
}

void Touch(const uint8_t* bytes, size_t size, size_t page_bytes) {
  const volatile uint8_t* data = bytes;
  for (size_t i = 0; i < size; i += page_bytes) (void)data[i];
  if (size != 0) (void)data[size - 1];
}

}  // namespace

StageWeights ViewStageWeights(const GgufFile& file, const HyperParameters& hyper_parameters,
                              const StageLayout& layout, const ShardSlice& slice) {
  StageWeights weights;
  for (uint32_t i = 0; i < layout.num_layers; ++i) {
    weights.layers.push_back(
        ReadLayer(FindLayerTensors(file, layout.first_layer + i), slice, hyper_parameters.head_size));
  }
  const EndTensors ends = FindEndTensors(file);
  if (ends.rope_freqs != nullptr) weights.rope_freqs = Floats(ends.rope_freqs);
  if (layout.first) weights.token_embedding = Matrix(ends.token_embedding);
  if (layout.last) {
    weights.output_norm = Floats(ends.output_norm);
    weights.output = Rows(ends.output, slice.vocabulary, 1);
  }
  return weights;
}

std::vector<kernels::WeightMatrix*> StageWeights::Matrices() {
  std::vector<kernels::WeightMatrix*> matrices;
  for (LayerWeights& layer : layers) {
    for (kernels::WeightMatrix* matrix : {&layer.ffn_down, &layer.ffn_gate, &layer.ffn_up, &layer.attn_k,
                                          &layer.attn_output, &layer.attn_q, &layer.attn_v}) {
      matrices.push_back(matrix);
    }
  }
  if (output.rows != 0) matrices.push_back(&output);
  return matrices;
}

std::vector<FloatTensor*> StageWeights::Norms() {
  std::vector<FloatTensor*> norms;
  for (LayerWeights& layer : layers) {
    norms.push_back(&layer.attn_norm);
    norms.push_back(&layer.ffn_norm);
  }
  if (!output_norm.values.empty()) norms.push_back(&output_norm);
  return norms;
}

uint64_t StageWeights::copied_bytes() const {
  uint64_t floats = output_norm.values.size() + rope_freqs.values.size();
  for (const LayerWeights& layer : layers) {
    floats += layer.attn_norm.values.size() + layer.ffn_norm.values.size();
  }
  return floats * sizeof(float);
}

std::vector<absl::Span<const uint8_t>> StageWeights::FileViews() {
  std::vector<absl::Span<const uint8_t>> views;
  for (const kernels::WeightMatrix* matrix : Matrices()) views.push_back(FileView(*matrix));
  if (token_embedding.rows != 0) views.push_back(FileView(token_embedding));
  for (const FloatTensor* norm : Norms()) views.push_back(norm->in_file);
  if (!rope_freqs.in_file.empty()) views.push_back(rope_freqs.in_file);
  return views;
}

absl::Span<const uint8_t> FileView(const kernels::WeightMatrix& matrix) {
  return {matrix.data, (matrix.rows - 1) * matrix.row_bytes + FileBytes(matrix) / matrix.rows};
}

uint64_t FileBytes(const kernels::WeightMatrix& matrix) {
  MILLRACE_CHECK(!matrix.packed);
  return uint64_t{matrix.rows} * matrix.columns / kernels::WeightBlockElements(matrix.type) *
         kernels::WeightBlockBytes(matrix.type);
}

void PageIn(const kernels::WeightMatrix& matrix) {
  if (matrix.rows == 0) return;
  const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t row_bytes = FileBytes(matrix) / matrix.rows;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(matrix.data) / page_bytes * page_bytes;
  const size_t span = (matrix.rows - 1) * matrix.row_bytes + row_bytes;
  const uintptr_t end = reinterpret_cast<uintptr_t>(matrix.data) + span;
  // The kernel starts to read ahead; a wrong guess costs nothing, so errors do not matter.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
  if (row_bytes == matrix.row_bytes) return Touch(matrix.data, span, page_bytes);
  for (size_t row = 0; row < matrix.rows; ++row) {
    Touch(matrix.data + row * matrix.row_bytes, row_bytes, page_bytes);
  }
}

}  // namespace millrace
