#include "tests/kernels/kernel_testing.h"

#include <algorithm>

namespace millrace::kernels {
namespace {

constexpr size_t kGuardBytes = 128;
constexpr uint8_t kGuard = 0xA5;

void PutHalf(uint8_t* p, std::mt19937& random) {
  // Magnitudes 2^-7 .. 2^-1, either sign.
  const uint32_t exponent = 8 + random() % 6;
  const uint32_t bits = (random() & 1u) << 15 | exponent << 10 | random() % 1024;
  p[0] = static_cast<uint8_t>(bits);
  p[1] = static_cast<uint8_t>(bits >> 8);
}

void FillRow(WeightType type, size_t columns, std::mt19937& random, uint8_t* row) {
  const size_t block_bytes = WeightBlockBytes(type);
  for (size_t b = 0; b < columns / WeightBlockElements(type); ++b) {
    uint8_t* block = row + b * block_bytes;
    if (type == WeightType::kF32) {
      const float value = std::uniform_real_distribution<float>(-1, 1)(random);
      std::memcpy(block, &value, sizeof(value));
      continue;
    }
    for (size_t i = 0; i < block_bytes; ++i) block[i] = static_cast<uint8_t>(random());
    if (type == WeightType::kBF16) {
      block[1] = static_cast<uint8_t>(0x3D + (random() & 1) + (random() & 1) * 0x80);
      continue;
    }
    if (type == WeightType::kQ6_K) {
      PutHalf(block + block_bytes - 2, random);
      continue;
    }
    PutHalf(block, random);
    if (HasMinimum(type)) PutHalf(block + 2, random);
  }
}

}  // namespace

std::unique_ptr<Backend> MakeBackend(const std::string& name) {
  if (name == "reference") return MakeReferenceBackend();
  auto backend = MakeCpuBackend({.isa = name});
  return backend.ok() ? *std::move(backend) : nullptr;
}

std::unique_ptr<Backend> MakeInt8Backend(const std::string& isa, size_t threads) {
  auto backend = MakeCpuBackend({.isa = isa, .activations = ActivationType::kInt8, .threads = threads});
  return backend.ok() ? *std::move(backend) : nullptr;
}

std::vector<std::string> CpuBackends() {
  std::vector<std::string> names;
  for (const char* isa : {"portable", "avx2", "avx512", "avx512vnni"}) {
    if (MakeCpuBackend({.isa = isa}).ok()) names.push_back(isa);
  }
  return names;
}

std::vector<std::string> AllBackends() {
  std::vector<std::string> names = CpuBackends();
  names.push_back("reference");
  return names;
}

GuardedFloats::GuardedFloats(size_t count, Alignment alignment)
    : storage_(2 * kGuardBytes + 64 + count * sizeof(float), kGuard), count_(count) {
  uintptr_t address = reinterpret_cast<uintptr_t>(storage_.data()) + kGuardBytes;
  address = (address + 63) / 64 * 64;
  if (alignment == Alignment::kFloat) address -= 64 - sizeof(float);
  data_ = reinterpret_cast<float*>(address);
  for (size_t i = 0; i < count; ++i) data_[i] = std::numeric_limits<float>::quiet_NaN();
}

GuardedFloats::GuardedFloats(const std::vector<float>& values) : GuardedFloats(values.size()) {
  for (size_t i = 0; i < values.size(); ++i) data_[i] = values[i];
}

bool GuardedFloats::Intact() const {
  const auto guarded = [](const uint8_t* begin, const uint8_t* end) {
    return std::all_of(begin, end, [](uint8_t byte) { return byte == kGuard; });
  };
  const uint8_t* begin = reinterpret_cast<const uint8_t*>(data_);
  return guarded(storage_.data(), begin) &&
         guarded(begin + count_ * sizeof(float), storage_.data() + storage_.size());
}

bool HasMinimum(WeightType type) {
  return type == WeightType::kQ4_1 || type == WeightType::kQ4_K || type == WeightType::kQ5_K;
}

size_t AtLeastABlock(WeightType type, size_t least) {
  return std::max(least, WeightBlockElements(type));
}

OwnedWeights RandomWeights(WeightType type, size_t rows, size_t columns, uint32_t seed) {
  std::mt19937 random(seed);
  // One byte in front makes addresses odd: blocks in files have no alignment to speak of.
  const size_t shift = type == WeightType::kF32 ? 0 : 1;
  OwnedWeights weights;
  weights.matrix.type = type;
  weights.matrix.rows = rows;
  weights.matrix.columns = columns;
  weights.matrix.row_bytes = columns / WeightBlockElements(type) * WeightBlockBytes(type);
  weights.bytes.resize(shift + rows * weights.matrix.row_bytes);
  weights.bytes.shrink_to_fit();
  weights.matrix.data = weights.bytes.data() + shift;
  for (size_t r = 0; r < rows; ++r) {
    FillRow(type, columns, random, weights.bytes.data() + shift + r * weights.matrix.row_bytes);
  }
  return weights;
}

std::vector<float> RandomFloats(size_t count, uint32_t seed, float range) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> distribution(-range, range);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random);
  return values;
}

std::vector<float> RunMatMul(const Backend& backend, const MatMulCase& c) {
  const WeightMatrix& weights = c.weights->matrix;
  const size_t k = weights.columns;
  GuardedFloats x(std::vector<float>(c.x.begin(), c.x.begin() + static_cast<std::ptrdiff_t>(c.rows * k)));
  GuardedFloats out = c.out.empty() ? GuardedFloats(c.rows * weights.rows) : GuardedFloats(c.out);
  GuardedFloats scratch(backend.MatMulScratchFloats(c.rows, k), GuardedFloats::Alignment::kCacheLine);
  std::vector<uint8_t> prepared(backend.MatMulInputBytes(c.rows, k) + 64);
  PrepareInputArgs prepare;
  prepare.x = x.data();
  prepare.rows = c.rows;
  prepare.columns = k;
  prepare.buffer = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(prepared.data()) + 63) / 64 * 64);
  MatMulArgs args;
  args.x = backend.PrepareInput(prepare);
  args.weights = weights;
  args.out = out.data();
  args.store = c.out.empty() ? MatMulStore::kReplace : MatMulStore::kAdd;
  args.scratch = scratch.data();
  backend.MatMul(args);
  EXPECT_TRUE(x.Intact() && out.Intact() && scratch.Intact()) << "wrote outside of its buffers";
  return out.values();
}

std::string ParamName(const ::testing::TestParamInfo<std::string>& info) {
  return info.param;
}

}  // namespace millrace::kernels
