#include "bench/kernels/peaks.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "bench/kernels/timing.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace millrace::kernels {
namespace {

constexpr size_t kStreamBytes = size_t{256} << 20;
constexpr int kSteps = 10000;
constexpr int kChains = 12;

#if defined(__x86_64__)
// The empty asm after each step keeps the compiler from doing several at once, the unrolling the sums in
// registers.
__attribute__((target("avx2,fma"))) void FmaLoop256() {
  __m256 acc[kChains];
#pragma GCC unroll 12
  for (auto& a : acc) a = _mm256_set1_ps(1.0f);
  const __m256 factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(0.001f);
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) {
      a = _mm256_fmadd_ps(a, factor, term);
      asm volatile("" : "+x"(a));
    }
  }
}

__attribute__((target("avx512f"))) void FmaLoop512() {
  __m512 acc[kChains];
#pragma GCC unroll 12
  for (auto& a : acc) a = _mm512_set1_ps(1.0f);
  const __m512 factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(0.001f);
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) {
      a = _mm512_fmadd_ps(a, factor, term);
      asm volatile("" : "+v"(a));
    }
  }
}

// Bytes, then pairs of 16-bit sums, then the sum: the chain is the last addition only.
__attribute__((target("avx2"))) void Int8Loop256() {
  __m256i acc[kChains];
#pragma GCC unroll 12
  for (auto& a : acc) a = _mm256_setzero_si256();
  __m256i bytes = _mm256_set1_epi8(3);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) {
      asm volatile("" : "+x"(bytes));
      a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, bytes), ones));
      asm volatile("" : "+x"(a));
    }
  }
}

__attribute__((target("avx512f,avx512bw"))) void Int8Loop512() {
  __m512i acc[kChains];
#pragma GCC unroll 12
  for (auto& a : acc) a = _mm512_setzero_si512();
  __m512i bytes = _mm512_set1_epi8(3);
  const __m512i ones = _mm512_set1_epi16(1);
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) {
      asm volatile("" : "+v"(bytes));
      a = _mm512_add_epi32(a, _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, bytes), ones));
      asm volatile("" : "+v"(a));
    }
  }
}

__attribute__((target("avx512f,avx512vnni"))) void Int8LoopVnni() {
  __m512i acc[kChains];
#pragma GCC unroll 12
  for (auto& a : acc) a = _mm512_setzero_si512();
  const __m512i bytes = _mm512_set1_epi8(3);
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) {
      a = _mm512_dpbusd_epi32(a, bytes, bytes);
      asm volatile("" : "+v"(a));
    }
  }
}
#endif

double PerSecond(double operations_a_step, double least, void (*loop)()) {
  return 1e-9 * operations_a_step * kSteps * kChains / Seconds(least, loop);
}

void Read(const uint64_t* begin, const uint64_t* end) {
  constexpr size_t kLine = 8, kAhead = 512;
  uint64_t sums[kLine] = {};
  for (const uint64_t* p = begin; p < end; p += kLine) {
    __builtin_prefetch(p + kAhead);
    for (size_t i = 0; i < kLine; ++i) sums[i] += p[i];
  }
  for (const uint64_t sum : sums) asm volatile("" : : "r"(sum));
}

}  // namespace

double FmaPeakGflops(const std::string& isa, double least_seconds) {
#if defined(__x86_64__)
  if (isa == "avx512" || isa == "avx512vnni") return PerSecond(32, least_seconds, FmaLoop512);
  if (isa == "avx2") return PerSecond(16, least_seconds, FmaLoop256);
#endif
  return 0 * least_seconds;
}

double Int8PeakGops(const std::string& isa, double least_seconds) {
#if defined(__x86_64__)
  if (isa == "avx512vnni") return PerSecond(128, least_seconds, Int8LoopVnni);
  if (isa == "avx512") return PerSecond(128, least_seconds, Int8Loop512);
  if (isa == "avx2") return PerSecond(64, least_seconds, Int8Loop256);
#endif
  return 0 * least_seconds;
}

double StreamGigabytesPerSecond(int threads, double least_seconds) {
  const std::vector<uint64_t> words(kStreamBytes / sizeof(uint64_t), 1);
  const size_t part = words.size() / static_cast<size_t>(threads);
  const auto read = [&](int i) {
    const uint64_t* begin = words.data() + static_cast<size_t>(i) * part;
    Read(begin, begin + part);
  };
  double seconds;
  if (threads == 1) {
    seconds = Seconds(least_seconds, [&] { read(0); });
  } else {
    seconds = WallSeconds(least_seconds, [&] {
      std::vector<std::thread> team;
      for (int i = 0; i < threads; ++i) team.emplace_back(read, i);
      for (std::thread& thread : team) thread.join();
    });
  }
  return 1e-9 * static_cast<double>(kStreamBytes) / seconds;
}

}  // namespace millrace::kernels
