#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "bench/kernels/op_bench.h"
#include "bench/kernels/timing.h"

namespace millrace::kernels {
namespace {

// Copies of a matrix that are multiplied in turn take as much as no cache holds.
constexpr size_t kColdBytes = size_t{128} << 20;
constexpr size_t kAlignment = 64;

struct Shape {
  const char* model;
  const char* type_name;
  WeightType type;
  const char* name;
  size_t n, k;
  int per_pass;  // times a forward pass runs it
};
// SmolLM2-135M as its file has it; TinyLlama's shape, as tests/golden/make_random_gguf.py makes it, by type.
constexpr Shape kShapes[] = {
    {"SmolLM2", "Q4_1", WeightType::kQ4_1, "q, attention output", 576, 576, 60},
    {"SmolLM2", "Q4_1", WeightType::kQ4_1, "k, v", 192, 576, 60},
    {"SmolLM2", "Q4_1", WeightType::kQ4_1, "gate, up", 1536, 576, 60},
    {"SmolLM2", "Q4_1", WeightType::kQ4_1, "down", 576, 1536, 30},
    {"SmolLM2", "Q4_1", WeightType::kQ8_0, "output", 49152, 576, 1},
    {"1.1 B", "Q8_0", WeightType::kQ8_0, "q, attention output", 2048, 2048, 44},
    {"1.1 B", "Q8_0", WeightType::kQ8_0, "k, v", 256, 2048, 44},
    {"1.1 B", "Q8_0", WeightType::kQ8_0, "gate, up", 5632, 2048, 44},
    {"1.1 B", "Q8_0", WeightType::kQ8_0, "down", 2048, 5632, 22},
    {"1.1 B", "Q8_0", WeightType::kQ8_0, "output", 32000, 2048, 1},
    {"1.1 B", "Q4_0", WeightType::kQ4_0, "q, attention output", 2048, 2048, 44},
    {"1.1 B", "Q4_0", WeightType::kQ4_0, "k, v", 256, 2048, 44},
    {"1.1 B", "Q4_0", WeightType::kQ4_0, "gate, up", 5632, 2048, 44},
    {"1.1 B", "Q4_0", WeightType::kQ4_0, "down", 2048, 5632, 22},
    {"1.1 B", "Q4_0", WeightType::kQ4_0, "output", 32000, 2048, 1},
};
constexpr size_t kRowCounts[] = {1, 4, 8, 16, 64, 256};

class AlignedBytes {
 public:
  explicit AlignedBytes(size_t bytes)
      : data_(static_cast<uint8_t*>(
            std::aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment))) {}
  ~AlignedBytes() { std::free(data_); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  uint8_t* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  uint8_t* data_;
};

// A matrix of random quants with ordinary scales.
std::vector<uint8_t> RandomMatrix(const Shape& s) {
  const size_t block = WeightBlockBytes(s.type);
  std::vector<uint8_t> bytes(s.n * s.k / WeightBlockElements(s.type) * block);
  std::minstd_rand random(1);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random() >> 8);
  constexpr uint8_t kScaleHigh = 0x2C, kMinHigh = 0xAC;  // f16 of about 0.06 and -0.06
  for (size_t i = 0; i < bytes.size(); i += block) {
    bytes[i + 1] = kScaleHigh;
    if (s.type == WeightType::kQ4_1) bytes[i + 3] = kMinHigh;
  }
  return bytes;
}

// The matrix as the backend wants it, so often that no cache holds all.
class ColdMatrix {
 public:
  ColdMatrix(const Backend& backend, const Shape& s, bool quick) : file_(RandomMatrix(s)) {
    first_ = {file_.data(), s.type, s.n, s.k, file_.size() / s.n};
    const size_t packed = backend.PackedBytes(first_);
    bytes_ = packed == 0 ? file_.size() : packed;
    copies_ = quick ? 1 : std::max<size_t>(1, kColdBytes / bytes_);
    memory_ = std::make_unique<AlignedBytes>(copies_ * bytes_);
    if (packed == 0) {
      std::memcpy(memory_->data(), file_.data(), bytes_);
      first_.data = memory_->data();
    } else {
      first_ = backend.Pack(first_, memory_->data());
    }
    for (size_t i = 1; i < copies_; ++i) std::memcpy(memory_->data() + i * bytes_, memory_->data(), bytes_);
  }
  size_t bytes() const { return bytes_; }
  WeightMatrix Next() {
    WeightMatrix next = first_;
    next.data = memory_->data() + next_ * bytes_;
    next_ = (next_ + 1) % copies_;
    return next;
  }

 private:
  std::vector<uint8_t> file_;
  std::unique_ptr<AlignedBytes> memory_;
  WeightMatrix first_;
  size_t bytes_ = 0, copies_ = 0, next_ = 0;
};

double MatMulSeconds(const Backend& backend, const Shape& s, size_t rows, ColdMatrix& matrix, double least) {
  std::vector<float> x(rows * s.k), out(rows * s.n);
  std::minstd_rand random(2);
  for (float& v : x) v = static_cast<float>(random() % 2001) * 0.001f - 1.0f;
  const AlignedBytes scratch(backend.MatMulScratchFloats(rows, s.k) * sizeof(float));
  const AlignedBytes prepared(backend.MatMulInputBytes(rows, s.k));
  PrepareInputArgs prepare;
  prepare.x = x.data();
  prepare.rows = rows;
  prepare.columns = s.k;
  prepare.buffer = prepared.data();
  prepare.rounding = InputRounding::kRefineLargest;
  MatMulArgs args;
  args.x = backend.PrepareInput(prepare);
  args.out = out.data();
  args.scratch = scratch.floats();
  return Seconds(least, [&] {
    args.weights = matrix.Next();
    backend.MatMul(args);
  });
}

}  // namespace

void BenchMatMuls(const Backend& backend, const OpBenchOptions& options) {
  for (const Shape& s : kShapes) {
    ColdMatrix matrix(backend, s, options.quick);
    for (const size_t rows : kRowCounts) {
      const double seconds = MatMulSeconds(backend, s, rows, matrix, options.least_seconds);
      std::printf(
          "{\"op\": \"matmul\", \"model\": \"%s\", \"type\": \"%s\", \"name\": \"%s\", \"n\": %zu, \"k\": "
          "%zu, "
          "\"rows\": %zu, \"seconds\": %.9f, \"bytes\": %zu, \"per_pass\": %d}\n",
          s.model, s.type_name, s.name, s.n, s.k, rows, seconds, matrix.bytes(), s.per_pass);
    }
  }
}

}  // namespace millrace::kernels
