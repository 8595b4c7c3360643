#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "bench/cuda/bench.h"
#include "kernels/cuda/cuda_ops.h"

namespace millrace::kernels::cuda {
namespace {

// Copies of a matrix that are multiplied in turn take as much as no cache of a device holds.
constexpr size_t kColdBytes = size_t{512} << 20;

struct Type {
  const char* name;
  WeightType type;
};
constexpr Type kTypes[] = {{"Q8_0", WeightType::kQ8_0},
                           {"Q4_0", WeightType::kQ4_0},
                           {"Q4_K", WeightType::kQ4_K},
                           {"F16", WeightType::kF16}};
struct Shape {
  size_t n, k;
};
// The layers of a model of 1.1 B parameters (TinyLlama) and of one of 8 B (Llama 3).
constexpr Shape kShapes[] = {{2048, 2048}, {5632, 2048},  {2048, 5632},
                             {4096, 4096}, {14336, 4096}, {4096, 14336}};
constexpr Shape kSmokeShapes[] = {{48, 512}};
constexpr size_t kRowCounts[] = {1, 8, 64, 512};
constexpr size_t kSmokeRowCounts[] = {1, 9};

// Random quants; the 16-bit scales at each block's begin, or the weights themselves, are small numbers.
std::vector<uint8_t> RandomMatrix(WeightType type, const Shape& shape) {
  const size_t block = WeightBlockBytes(type);
  std::vector<uint8_t> bytes(shape.n * shape.k / WeightBlockElements(type) * block);
  std::minstd_rand random(1);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() >> 8);
  constexpr uint8_t kHigh = 0x2c;  // of a float16 of about 0.06
  for (size_t i = 0; i < bytes.size(); i += block) {
    bytes[i + 1] = kHigh;
    if (type == WeightType::kQ4_K) bytes[i + 3] = kHigh;
  }
  return bytes;
}

// The matrix as the device wants it, so often that no cache holds all.
class ColdMatrix {
 public:
  ColdMatrix(const BenchOptions& options, const CudaQueue& queue, WeightType type, const Shape& shape) {
    const std::vector<uint8_t> file = RandomMatrix(type, shape);
    const WeightMatrix unpacked = {file.data(), type, shape.n, shape.k, file.size() / shape.n};
    constexpr size_t kAlignment = 256;
    bytes_ = (PackedBytes(unpacked) + kAlignment - 1) / kAlignment * kAlignment;
    copies_ = options.smoke ? 2 : std::max<size_t>(2, kColdBytes / bytes_);
    memory_ = std::make_unique<DeviceBuffer>(copies_ * bytes_);
    first_ = Pack(queue, unpacked, memory_->data());
    for (size_t i = 1; i < copies_; ++i) {
      Check(cudaMemcpy(memory_->data() + i * bytes_, memory_->data(), bytes_, cudaMemcpyDeviceToDevice),
            "copying");
    }
  }
  size_t bytes() const { return bytes_; }
  WeightMatrix Next() {
    WeightMatrix next = first_;
    next.data += next_ * bytes_;
    next_ = (next_ + 1) % copies_;
    return next;
  }

 private:
  std::unique_ptr<DeviceBuffer> memory_;
  WeightMatrix first_;
  size_t bytes_ = 0, copies_ = 0, next_ = 0;
};

double MatMulSeconds(const BenchOptions& options, const CudaQueue& queue, const Shape& shape, size_t rows,
                     ColdMatrix* matrix) {
  const DeviceBuffer x(rows * shape.k * sizeof(float)), out(rows * shape.n * sizeof(float));
  const DeviceBuffer prepared(std::max<size_t>(1, MatMulInputBytes(rows, shape.k)));
  const DeviceBuffer scratch(std::max<size_t>(1, MatMulScratchFloats(rows, std::max(shape.k, shape.n))) *
                             sizeof(float));
  x.Fill(rows * shape.k, 2);
  PrepareInputArgs prepare;
  prepare.x = x.floats();
  prepare.rows = rows;
  prepare.columns = shape.k;
  prepare.buffer = prepared.data();
  MatMulArgs args;
  args.x = PrepareInput(queue, prepare);
  args.out = out.floats();
  args.scratch = scratch.floats();
  return DeviceSeconds(options, queue, [&] {
    args.weights = matrix->Next();
    MatMulAll(queue, {&args, 1});
  });
}

template <class Shapes, class RowCounts>
void Bench(const BenchOptions& options, const CudaQueue& queue, const Shapes& shapes,
           const RowCounts& row_counts) {
  for (const Type& type : kTypes) {
    for (const Shape& shape : shapes) {
      ColdMatrix matrix(options, queue, type.type, shape);
      for (const size_t rows : row_counts) {
        const double seconds = MatMulSeconds(options, queue, shape, rows, &matrix);
        const double flops = 2.0 * static_cast<double>(rows * shape.n * shape.k);
        Print(options, {"matmul", type.name, shape.n, shape.k, rows, static_cast<double>(matrix.bytes()),
                        flops, seconds});
      }
    }
  }
}

}  // namespace

void BenchMatMuls(const BenchOptions& options, const CudaQueue& queue) {
  if (options.smoke) {
    Bench(options, queue, kSmokeShapes, kSmokeRowCounts);
  } else {
    Bench(options, queue, kShapes, kRowCounts);
  }
}

}  // namespace millrace::kernels::cuda
