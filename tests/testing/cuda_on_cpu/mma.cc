#include "cuda_on_cpu/mma.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include <bit>
#include <cstring>

#include "fibers.h"

namespace cuda_on_cpu {
namespace {

using internal::Access;
using internal::BlockRunner;
using internal::kWarpLanes;
using internal::Lane;
using internal::shared_access_observer;
using internal::WarpCall;

constexpr int kRows = 16;    // of A and D
constexpr int kColumns = 8;  // of B and D

template <class Sum>
struct MmaData {
  Sum* d;
  const uint32_t* a;
  const uint32_t* b;
};

// Brings the words of A's and B's fragments into rows of A and columns of B, `words` of 32 bits each.
// Register i holds word t + 4 (i / 2) of row g + 8 (i % 2) of A, and word t + 4 i of column g of B.
template <int words>
void Gather(void* const data[kWarpLanes], uint32_t (&a)[kRows][words], uint32_t (&b)[kColumns][words]) {
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    const auto& mine = *static_cast<const MmaData<int>*>(data[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = mine.a[i];
    for (unsigned i = 0; i < 2; ++i) b[g][t + 4 * i] = mine.b[i];
  }
}

template <class Sum>
Sum& Element(void* const data[kWarpLanes], unsigned lane, unsigned i) {
  return static_cast<MmaData<Sum>*>(data[lane])->d[i];
}

void MmaS8Together(void* const data[kWarpLanes], uint32_t) {
  constexpr int kDepth = 32;
  uint32_t a_words[kRows][kDepth / 4], b_words[kColumns][kDepth / 4];
  Gather<kDepth / 4>(data, a_words, b_words);
  int8_t a8[kRows][kDepth], b8[kColumns][kDepth];
  std::memcpy(a8, a_words, sizeof(a8));
  std::memcpy(b8, b_words, sizeof(b8));
  int16_t a[kRows][kDepth], b[kColumns][kDepth];
  for (int i = 0; i < kRows * kDepth; ++i) (&a[0][0])[i] = (&a8[0][0])[i];
  for (int i = 0; i < kColumns * kDepth; ++i) (&b[0][0])[i] = (&b8[0][0])[i];
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const int16_t* const row = a[lane / 4 + 8 * (i / 2)];
      const int16_t* const column = b[2 * (lane % 4) + i % 2];
      int sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += row[k] * column[k];
      int& d = Element<int>(data, lane, i);
      d = static_cast<int>(static_cast<unsigned>(d) + static_cast<unsigned>(sum));
    }
  }
}

struct Float16 {
#ifdef __F16C__
  static void Widen(const uint16_t* halves, int count, float* values) {
    for (int i = 0; i < count; i += 8) {
      _mm256_storeu_ps(values + i,
                       _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i))));
    }
  }
#else
  static float Value(uint32_t half) {
    // Exponent and mantissa moved into a float's, whose exponent is biased by 112 more: exact, subnormal or
    // not.
    const uint32_t magnitude = (half & 0x7fffu) << 13;
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
    const uint32_t bits =
        magnitude >= 0x7c00u << 13 ? magnitude | 0x7f800000u : std::bit_cast<uint32_t>(scaled);
    return std::bit_cast<float>(bits | (half & 0x8000u) << 16);
  }
  static void Widen(const uint16_t* halves, int count, float* values) {
    for (int i = 0; i < count; ++i) values[i] = Value(halves[i]);
  }
#endif
};

struct Bfloat16 {
  static void Widen(const uint16_t* halves, int count, float* values) {
    for (int i = 0; i < count; ++i) values[i] = std::bit_cast<float>(static_cast<uint32_t>(halves[i]) << 16);
  }
};

template <class Type>
void MmaFloatTogether(void* const data[kWarpLanes], uint32_t) {
  constexpr int kDepth = 16;
  uint16_t a_halves[kRows][kDepth], b_halves[kDepth][kColumns];
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    const auto& mine = *static_cast<const MmaData<float>*>(data[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
      std::memcpy(&a_halves[g + 8 * (i % 2)][2 * t + 8 * (i / 2)], &mine.a[i], sizeof(uint32_t));
    }
    for (unsigned i = 0; i < 2; ++i) {
      b_halves[2 * t + 8 * i][g] = static_cast<uint16_t>(mine.b[i]);
      b_halves[2 * t + 8 * i + 1][g] = static_cast<uint16_t>(mine.b[i] >> 16);
    }
  }
  float a[kRows][kDepth], b[kDepth][kColumns], d[kRows][kColumns];
  Type::Widen(&a_halves[0][0], kRows * kDepth, &a[0][0]);
  Type::Widen(&b_halves[0][0], kDepth * kColumns, &b[0][0]);
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = Element<float>(data, lane, i);
    }
  }
  using Row = float __attribute__((vector_size(kColumns * sizeof(float))));
  Row b_rows[kDepth];
  std::memcpy(b_rows, b, sizeof(b));
  for (int row = 0; row < kRows; ++row) {
    Row sums;
    std::memcpy(&sums, d[row], sizeof(sums));
    // Products of two 11-bit or 8-bit mantissas are exact in float32.
    for (int k = 0; k < kDepth; ++k) sums += a[row][k] * b_rows[k];
    std::memcpy(d[row], &sums, sizeof(sums));
  }
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      Element<float>(data, lane, i) = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    }
  }
}

void CallAligned(internal::Together together, void* data, const char* what, Site site) {
  WarpCall call;
  call.together = together;
  call.mask = ~0u;
  call.data = data;
  call.site = site;
  call.what = what;
  call.aligned = true;
  BlockRunner::Running().CallTogether(call);
}

bool InSharedMemory(const void* address, size_t bytes) {
  const BlockPlace& block = *current_thread->block;
  const auto* const at = static_cast<const unsigned char*>(address);
  return at >= block.shared && at + bytes <= block.shared + block.shared_bytes;
}

struct LoadData {
  uint32_t* d;
  const void* row;
};

constexpr size_t kRowBytes = 16;

template <int matrices, bool transposed>
void LoadTogether(void* const data[kWarpLanes], uint32_t) {
  uint16_t elements[8][8];
  for (int m = 0; m < matrices; ++m) {
    for (int row = 0; row < 8; ++row) {
      std::memcpy(elements[row], static_cast<const LoadData*>(data[8 * m + row])->row, kRowBytes);
    }
    for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
      const unsigned g = lane / 4, t = lane % 4;
      const uint32_t low = transposed ? elements[2 * t][g] : elements[g][2 * t];
      const uint32_t high = transposed ? elements[2 * t + 1][g] : elements[g][2 * t + 1];
      static_cast<LoadData*>(data[lane])->d[m] = low | high << 16;
    }
  }
}

template <int matrices, bool transposed>
void LoadMatrices(uint32_t (&d)[matrices], const void* row, Site site) {
  const unsigned lane = static_cast<unsigned>(std::countr_zero(static_cast<Lane*>(current_thread)->bit));
  if (lane < 8 * matrices) {
    if (!InSharedMemory(row, kRowBytes)) Fail("ldmatrix: the row does not lie in shared memory", site);
    if (reinterpret_cast<uintptr_t>(row) % kRowBytes != 0)
      Fail("ldmatrix: the row is not 16-byte aligned", site);
  }
  if (lane < 8 * matrices && shared_access_observer != nullptr) {
    shared_access_observer(row, kRowBytes, Access::kReadByWarp, __builtin_return_address(0));
  }
  LoadData data = {d, row};
  CallAligned(LoadTogether<matrices, transposed>, &data, "ldmatrix", site);
}

void StartCopy(void* shared, const void* global, size_t bytes, bool valid, Site site) {
  if (!InSharedMemory(shared, bytes)) Fail("cp.async: the destination does not lie in shared memory", site);
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0)
    Fail("cp.async: the destination is not aligned", site);
  if (reinterpret_cast<uintptr_t>(global) % bytes != 0) Fail("cp.async: the source is not aligned", site);
  if (shared_access_observer != nullptr) {
    shared_access_observer(shared, bytes, Access::kWrite, __builtin_return_address(0));
  }
  std::memset(shared, 0xff, bytes);
  static_cast<Lane*>(current_thread)->copies.push_back({shared, valid ? global : nullptr, bytes});
}

}  // namespace

void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  MmaData<int> data = {d, a, b};
  CallAligned(MmaS8Together, &data, "mma_s8", site);
}

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  MmaData<float> data = {d, a, b};
  CallAligned(MmaFloatTogether<Float16>, &data, "mma_f16", site);
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  MmaData<float> data = {d, a, b};
  CallAligned(MmaFloatTogether<Bfloat16>, &data, "mma_bf16", site);
}

void ldmatrix_x1(uint32_t (&d)[1], const void* row, Site site) {
  LoadMatrices<1, false>(d, row, site);
}
void ldmatrix_x2(uint32_t (&d)[2], const void* row, Site site) {
  LoadMatrices<2, false>(d, row, site);
}
void ldmatrix_x4(uint32_t (&d)[4], const void* row, Site site) {
  LoadMatrices<4, false>(d, row, site);
}
void ldmatrix_x1_trans(uint32_t (&d)[1], const void* row, Site site) {
  LoadMatrices<1, true>(d, row, site);
}
void ldmatrix_x2_trans(uint32_t (&d)[2], const void* row, Site site) {
  LoadMatrices<2, true>(d, row, site);
}
void ldmatrix_x4_trans(uint32_t (&d)[4], const void* row, Site site) {
  LoadMatrices<4, true>(d, row, site);
}

void cp_async_16(void* shared, const void* global, bool valid, Site site) {
  StartCopy(shared, global, 16, valid, site);
}
void cp_async_8(void* shared, const void* global, bool valid, Site site) {
  StartCopy(shared, global, 8, valid, site);
}
void cp_async_4(void* shared, const void* global, bool valid, Site site) {
  StartCopy(shared, global, 4, valid, site);
}

void cp_async_commit() {
  Lane& lane = *static_cast<Lane*>(current_thread);
  lane.copy_groups.push_back(lane.copies.size());
}

void WaitForCopies(int pending) {
  Lane& lane = *static_cast<Lane*>(current_thread);
  const size_t groups = lane.copy_groups.size();
  if (groups <= static_cast<size_t>(pending)) return;
  const size_t landing = groups - static_cast<size_t>(pending);
  const size_t copies = lane.copy_groups[landing - 1];
  for (size_t i = 0; i < copies; ++i) {
    const internal::AsyncCopy& copy = lane.copies[i];
    if (shared_access_observer != nullptr) {
      shared_access_observer(copy.shared, copy.bytes, Access::kWrite, __builtin_return_address(0));
    }
    if (copy.global == nullptr) {
      std::memset(copy.shared, 0, copy.bytes);
    } else {
      std::memcpy(copy.shared, copy.global, copy.bytes);
    }
  }
  lane.copies.erase(lane.copies.begin(), lane.copies.begin() + static_cast<ptrdiff_t>(copies));
  lane.copy_groups.erase(lane.copy_groups.begin(),
                         lane.copy_groups.begin() + static_cast<ptrdiff_t>(landing));
  for (size_t& end : lane.copy_groups) end -= copies;
}

}  // namespace cuda_on_cpu
