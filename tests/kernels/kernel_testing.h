// What the kernel tests share: the backends of this machine, guarded buffers, random weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace millrace::kernels {

inline const std::vector<size_t> kRowCounts = {1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 64, 65};
inline const std::vector<WeightType> kWeightTypes = {
    WeightType::kF32,  WeightType::kF16,  WeightType::kBF16, WeightType::kQ8_0, WeightType::kQ4_0,
    WeightType::kQ4_1, WeightType::kQ5_0, WeightType::kQ4_K, WeightType::kQ5_K, WeightType::kQ6_K};

// "reference" or an instruction set for MakeCpuBackend.
std::unique_ptr<Backend> MakeBackend(const std::string& name);
std::unique_ptr<Backend> MakeInt8Backend(const std::string& isa, size_t threads = 1);
// The instruction sets this machine has, "portable" first; AllBackends adds "reference".
std::vector<std::string> CpuBackends();
std::vector<std::string> AllBackends();

// `count` floats between guard bytes, NaN at first, at the end of their allocation but for the guard. Only
// floats that have to be are on a 64-byte boundary; the others are deliberately not.
class GuardedFloats {
 public:
  enum class Alignment { kFloat, kCacheLine };
  explicit GuardedFloats(size_t count, Alignment alignment = Alignment::kFloat);
  explicit GuardedFloats(const std::vector<float>& values);

  float* data() { return data_; }
  std::vector<float> values() const { return std::vector<float>(data_, data_ + count_); }
  // Whether all guard bytes are as they were.
  bool Intact() const;

 private:
  std::vector<uint8_t> storage_;
  float* data_ = nullptr;
  size_t count_ = 0;
};

// `least`, or the columns of one block if that is more.
size_t AtLeastABlock(WeightType type, size_t least);
// kQ4_1, kQ4_K, kQ5_K.
bool HasMinimum(WeightType type);

// A matrix and the memory it lies in, exactly as long as its rows, at an odd address for the quantised types.
struct OwnedWeights {
  std::vector<uint8_t> bytes;
  WeightMatrix matrix;
};
OwnedWeights RandomWeights(WeightType type, size_t rows, size_t columns, uint32_t seed);

std::vector<float> RandomFloats(size_t count, uint32_t seed, float range = 1.0f);

struct MatMulCase {
  std::vector<float> x;  // [rows, k]
  size_t rows = 0;
  const OwnedWeights* weights = nullptr;
  std::vector<float> out;  // to be added to; empty: not accumulated
};
// Runs it on guarded, poisoned buffers and checks the guards.
std::vector<float> RunMatMul(const Backend& backend, const MatMulCase& c);

std::string ParamName(const ::testing::TestParamInfo<std::string>& info);

}  // namespace millrace::kernels
