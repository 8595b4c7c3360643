#include "worker/stage/stage_weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "common/check.h"

namespace millrace {
namespace {

constexpr uint64_t kPageInBytes = 16 << 20;

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

// Remembers each tensor it hands out.
class TensorReader {
 public:
  explicit TensorReader(std::vector<const TensorInfo*>& read) : read_(read) {}

  kernels::WeightMatrix Matrix(const TensorInfo* tensor) {
    MILLRACE_CHECK(tensor != nullptr && tensor->shape.size() == 2);
    read_.push_back(tensor);
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

  std::vector<float> Floats(const TensorInfo* tensor) {
    MILLRACE_CHECK(tensor != nullptr && tensor->type == TensorType::kF32);
    read_.push_back(tensor);
    std::vector<float> floats(tensor->bytes.size() / sizeof(float));
    std::memcpy(floats.data(), tensor->bytes.data(), floats.size() * sizeof(float));
    return floats;
  }

 private:
  std::vector<const TensorInfo*>& read_;
};

LayerWeights ReadLayer(const LayerTensors& tensors, TensorReader& reader) {
  LayerWeights layer;
  layer.attn_norm = reader.Floats(tensors.attn_norm);
  layer.attn_q = reader.Matrix(tensors.attn_q);
  layer.attn_k = reader.Matrix(tensors.attn_k);
  layer.attn_v = reader.Matrix(tensors.attn_v);
  layer.attn_output = reader.Matrix(tensors.attn_output);
  layer.ffn_norm = reader.Floats(tensors.ffn_norm);
  layer.ffn_gate = reader.Matrix(tensors.ffn_gate);
  layer.ffn_up = reader.Matrix(tensors.ffn_up);
  layer.ffn_down = reader.Matrix(tensors.ffn_down);
  return layer;
}

// The kernel starts to read the whole range ahead; a wrong guess costs nothing, so errors do not matter.
void ReadAhead(absl::Span<const uint8_t> bytes, uintptr_t page_bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(bytes.data()) / page_bytes * page_bytes;
  const uintptr_t end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size());
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
}

void Touch(absl::Span<const uint8_t> bytes, size_t page_bytes) {
  const volatile uint8_t* data = bytes.data();
  for (size_t i = 0; i < bytes.size(); i += page_bytes) (void)data[i];
  if (!bytes.empty()) (void)data[bytes.size() - 1];
}

}  // namespace

StageWeights ViewStageWeights(const GgufFile& file, const StageLayout& layout) {
  StageWeights weights;
  TensorReader reader(weights.tensors);
  for (uint32_t i = 0; i < layout.num_layers; ++i) {
    weights.layers.push_back(ReadLayer(FindLayerTensors(file, layout.first_layer + i), reader));
  }
  const EndTensors ends = FindEndTensors(file);
  if (ends.rope_freqs != nullptr) weights.rope_freqs = reader.Floats(ends.rope_freqs);
  if (layout.first) weights.token_embedding = reader.Matrix(ends.token_embedding);
  if (layout.last) {
    weights.output_norm = reader.Floats(ends.output_norm);
    weights.output = reader.Matrix(ends.output);
  }
  // A tied embedding is read by both ends of the model, but is there once. The file's order is the disk's.
  std::vector<const TensorInfo*>& tensors = weights.tensors;
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::less<const uint8_t*>()(a->bytes.data(), b->bytes.data());
  });
  tensors.erase(std::unique(tensors.begin(), tensors.end()), tensors.end());
  return weights;
}

uint64_t StageWeights::bytes() const {
  uint64_t bytes = 0;
  for (const TensorInfo* tensor : tensors) bytes += tensor->bytes.size();
  return bytes;
}

uint64_t StageWeights::copied_bytes() const {
  uint64_t floats = output_norm.size() + rope_freqs.size();
  for (const LayerWeights& layer : layers) floats += layer.attn_norm.size() + layer.ffn_norm.size();
  return floats * sizeof(float);
}

void PageIn(const StageWeights& weights, const std::function<void(uint64_t, uint64_t)>& progress) {
  const uint64_t total = weights.bytes();
  const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  uint64_t done = 0;
  uint64_t reported = 0;
  for (const TensorInfo* tensor : weights.tensors) {
    for (size_t begin = 0; begin < tensor->bytes.size(); begin += kPageInBytes) {
      const absl::Span<const uint8_t> part = tensor->bytes.subspan(begin, kPageInBytes);
      ReadAhead(part, page_bytes);
      Touch(part, page_bytes);
      done += part.size();
      if (progress && (done - reported >= kPageInBytes || done == total)) progress(reported = done, total);
    }
  }
}

}  // namespace millrace
