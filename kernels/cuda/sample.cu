#include <cstring>

#include "kernels/cuda/kernel.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sample.h"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr double kWeightUnit = 17592186044416.0;  // 2^44: of up to 2^19 tokens the sum fits in 64 bits
constexpr float kLargestFloat = 3.402823466e+38f;

using Word = unsigned long long;

// SampleRow as the device reads it; lists are ranges of entries.
struct RowOnDevice {
  uint32_t row;
  int32_t given_token;
  uint32_t logprobs;
  uint32_t alternatives;
  float temperature;
  uint32_t top_k;
  float top_p;
  float min_p;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  uint32_t bias_begin;
  uint32_t suppressed_begin;
  uint32_t seen_begin;
  uint32_t seen_end;
  uint32_t unused;
  Word random;
  double inverse_temperature;
  double inverse_repetition;
};

struct Entry {
  uint32_t id;
  uint32_t value;  // bits of a bias, or a count
};

constexpr size_t HeadBytes(size_t max_rows) {
  return max_rows * (sizeof(RowOnDevice) + sizeof(SampleResult));
}

// What the threads of a block share.
struct Shared {
  Word bins[kDigits];
  Word partial[kThreads / kWarp];
  Word word;
  uint32_t key;
  uint32_t id;
  float largest;
  SampleResult result;
};

struct Tokens {
  const float* values;  // orderly
  uint32_t count;
};

// The first tokens of the order: those of larger keys, and `ties` of those of this one.
struct Prefix {
  uint32_t key;
  uint32_t ties;
};

__device__ float Orderly(float logit) {
  if (logit != logit) return -INFINITY;
  return fminf(logit, kLargestFloat) + 0.0f;  // no negative zero
}

__device__ bool IsOut(float value) {
  return value == -INFINITY;
}

// Rises with the value.
__device__ uint32_t Key(float value) {
  const uint32_t bits = __float_as_uint(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ float ValueOf(uint32_t key) {
  return __uint_as_float((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ Word BlockSum(Shared* shared, Word value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared->partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  Word sum = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) sum += shared->partial[warp];
  return sum;
}

__device__ __forceinline__ Word BlockMax(Shared* shared, Word value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Word other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared->partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  Word largest = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) {
    largest = shared->partial[warp] > largest ? shared->partial[warp] : largest;
  }
  return largest;
}

// The first token of the order, as (key, ~id); 0: none is in.
__device__ __forceinline__ Word First(Shared* shared, const Tokens& tokens) {
  Word best = 0;
  for (uint32_t id = threadIdx.x; id < tokens.count; id += kThreads) {
    const float value = tokens.values[id];
    if (IsOut(value)) continue;
    const Word mine = Word{Key(value)} << 32 | static_cast<uint32_t>(~id);
    best = mine > best ? mine : best;
  }
  return BlockMax(shared, best);
}

// The shortest prefix of `within` whose weights add up to `target`, at least; all of it if none do. `weight`
// is of a value.
template <class Weight>
__device__ __forceinline__ Prefix Descend(Shared* shared, const Tokens& tokens, Prefix within, Word target,
                                          Weight weight) {
  uint32_t chosen = 0;
  uint32_t mask = 0;
  Word above = 0;
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int bin = threadIdx.x; bin < kDigits; bin += kThreads) shared->bins[bin] = 0;
    __syncthreads();
    for (uint32_t id = threadIdx.x; id < tokens.count; id += kThreads) {
      const float value = tokens.values[id];
      const uint32_t key = Key(value);
      if (IsOut(value) || key <= within.key || (key & mask) != chosen) continue;
      atomicAdd(&shared->bins[key >> shift & (kDigits - 1)], weight(value));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      if (within.ties > 0 && (within.key & mask) == chosen) {
        shared->bins[within.key >> shift & (kDigits - 1)] += within.ties * weight(ValueOf(within.key));
      }
      // The lowest digit that has any weight, unless the target is reached before.
      int digit = -1;
      Word before = above;
      for (int bin = kDigits - 1; bin >= 0; --bin) {
        if (shared->bins[bin] == 0) continue;
        digit = bin;
        above = before;
        before += shared->bins[bin];
        if (before >= target) break;
      }
      shared->key = digit < 0 ? within.key : chosen | static_cast<uint32_t>(digit) << shift;
      shared->word = above;
    }
    __syncthreads();
    chosen = shared->key & (mask | static_cast<uint32_t>(kDigits - 1) << shift);
    above = shared->word;
    mask |= static_cast<uint32_t>(kDigits - 1) << shift;
    __syncthreads();
  }
  // No value has the key of a prefix of everything.
  const Word each = chosen == 0 ? 0 : weight(ValueOf(chosen));
  uint32_t ties = within.ties;
  if (chosen != within.key) {
    Word mine = 0;
    for (uint32_t id = threadIdx.x; id < tokens.count; id += kThreads) {
      if (!IsOut(tokens.values[id]) && Key(tokens.values[id]) == chosen) ++mine;
    }
    ties = static_cast<uint32_t>(BlockSum(shared, mine));
  }
  // The least number of ties that reaches the target, by bisection: a division of 64 bits would take a call.
  uint32_t least = 1;
  while (least < ties) {
    const uint32_t middle = least + (ties - least) / 2;
    if (above + middle * each >= target) {
      ties = middle;
    } else {
      least = middle + 1;
    }
  }
  return {chosen, ties};
}

// The `index`-th token, from 0, of those that `counts` gives 1, in the order of ids. REQUIRES: there are
// more.
template <class Counts>
__device__ __forceinline__ uint32_t Nth(Shared* shared, const Tokens& tokens, Word index, Counts counts) {
  Word passed = 0;
  for (uint32_t begin = 0; begin < tokens.count; begin += kThreads) {
    const uint32_t id = begin + threadIdx.x;
    const Word mine = id < tokens.count ? counts(id) : 0;
    const Word all = BlockSum(shared, mine);
    if (passed + all <= index) {
      passed += all;
      continue;
    }
    // In this tile: thread 0 walks it.
    if (threadIdx.x == 0) {
      uint32_t found = begin;
      for (uint32_t other = begin; other < tokens.count && other < begin + kThreads; ++other) {
        passed += counts(other);
        found = other;
        if (passed > index) break;
      }
      shared->id = found;
    }
    __syncthreads();
    break;
  }
  return shared->id;
}

__device__ __forceinline__ void AdjustRow(const RowOnDevice& row, const Entry* entries, const float* logits,
                                          float* values, uint32_t vocabulary) {
  for (uint32_t id = threadIdx.x; id < vocabulary; id += kThreads) values[id] = Orderly(logits[id]);
  __syncthreads();
  if (row.given_token >= 0) return;
  for (uint32_t i = row.bias_begin + threadIdx.x; i < row.suppressed_begin; i += kThreads) {
    const uint32_t id = entries[i].id;
    values[id] = Orderly(__fadd_rn(values[id], __uint_as_float(entries[i].value)));
  }
  __syncthreads();
  for (uint32_t i = row.suppressed_begin + threadIdx.x; i < row.seen_begin; i += kThreads) {
    values[entries[i].id] = -INFINITY;
  }
  __syncthreads();
  for (uint32_t i = row.seen_begin + threadIdx.x; i < row.seen_end; i += kThreads) {
    float logit = values[entries[i].id];
    // The quotient, rounded once: no quotient of two floats is as close to the middle between two as the
    // product's own error, and a division would take a call.
    logit = logit > 0 ? static_cast<float>(static_cast<double>(logit) * row.inverse_repetition)
                      : __fmul_rn(logit, row.repetition_penalty);
    if (entries[i].value > 0) {
      logit = __fsub_rn(logit, row.presence_penalty);
      logit = __fsub_rn(logit, __fmul_rn(row.frequency_penalty, static_cast<float>(entries[i].value)));
    }
    values[entries[i].id] = Orderly(logit);
  }
  __syncthreads();
}

// A token by weight, among those the filters leave. REQUIRES: one is in, with the largest value.
__device__ __forceinline__ uint32_t Draw(Shared* shared, const RowOnDevice& row, const Tokens& tokens,
                                         float largest) {
  const auto share = [&](float value) {
    return exp((static_cast<double>(value) - largest) * row.inverse_temperature);
  };
  const auto weight = [&](float value) { return static_cast<Word>(share(value) * kWeightUnit); };
  const auto one = [](float) { return Word{1}; };
  const bool sorted = row.top_k > 0 || row.top_p < 1;
  Prefix kept{0, 0};  // all: no key is so small
  if (row.top_k > 0) kept = Descend(shared, tokens, kept, row.top_k, one);
  const auto sum = [&](double least) {
    Word mine = 0;
    for (uint32_t id = threadIdx.x; id < tokens.count; id += kThreads) {
      const float value = tokens.values[id];
      if (!IsOut(value) && Key(value) > kept.key && share(value) >= least) mine += weight(value);
    }
    const float last = ValueOf(kept.key);
    return BlockSum(shared, mine) +
           (kept.ties > 0 && share(last) >= least ? kept.ties * weight(last) : Word{0});
  };
  if (row.top_p < 1) {
    const Word enough = static_cast<Word>(ceil(static_cast<double>(row.top_p) * static_cast<double>(sum(0))));
    kept = Descend(shared, tokens, kept, enough, weight);
  }
  const Word total = sum(row.min_p);
  // random * total / 2^53, of 128 bits.
  const Word target = __umul64hi(row.random << 11, total);
  if (!sorted) {
    return Nth(shared, tokens, target, [&](uint32_t id) {
      const float value = tokens.values[id];
      return IsOut(value) || share(value) < row.min_p ? Word{0} : weight(value);
    });
  }
  const Prefix drawn = Descend(shared, tokens, kept, target + 1, weight);
  return Nth(shared, tokens, drawn.ties - 1, [&](uint32_t id) {
    return Word{!IsOut(tokens.values[id]) && Key(tokens.values[id]) == drawn.key};
  });
}

// Among raw logits, where nothing is left to choose from: the largest that is finite, else token 0.
__device__ __forceinline__ uint32_t LargestFinite(Shared* shared, const float* logits, uint32_t vocabulary) {
  Word best = 0;
  for (uint32_t id = threadIdx.x; id < vocabulary; id += kThreads) {
    if (!(fabsf(logits[id]) <= kLargestFloat)) continue;
    const Word mine = Word{Key(logits[id] + 0.0f)} << 32 | static_cast<uint32_t>(~id);
    best = mine > best ? mine : best;
  }
  best = BlockMax(shared, best);
  return best == 0 ? 0 : ~static_cast<uint32_t>(best);
}

__device__ __forceinline__ void Logprobs(Shared* shared, const RowOnDevice& row, const Tokens& tokens) {
  const Word first = First(shared, tokens);
  const float largest = first == 0 ? 0 : ValueOf(static_cast<uint32_t>(first >> 32));
  Word mine = 0;
  for (uint32_t id = threadIdx.x; id < tokens.count; id += kThreads) {
    const double logit = tokens.values[id];
    if (!IsOut(tokens.values[id])) mine += static_cast<Word>(exp(logit - largest) * kWeightUnit);
  }
  const Word sum = BlockSum(shared, mine);
  if (threadIdx.x == 0) {
    shared->result.logit = tokens.values[shared->result.token];
    shared->result.largest = largest;
    shared->result.sum = first == 0 ? 1 : static_cast<double>(sum) * (1 / kWeightUnit);
  }
  // The most probable one by one: they are few.
  Word last = ~Word{0};
  uint32_t count = 0;
  for (; count < row.alternatives && count < tokens.count; ++count) {
    Word best = 0;
    for (uint32_t id = threadIdx.x; id < tokens.count; id += kThreads) {
      const Word other = Word{Key(tokens.values[id])} << 32 | static_cast<uint32_t>(~id);
      if (other < last && other > best) best = other;
    }
    last = BlockMax(shared, best);
    if (threadIdx.x == 0) {
      const uint32_t id = ~static_cast<uint32_t>(last);
      shared->result.ids[count] = id;
      shared->result.logits[count] = tokens.values[id];
    }
  }
  if (threadIdx.x == 0) shared->result.num_alternatives = count;
}

__global__ void __launch_bounds__(kThreads, 2)
    SampleKernel(const RowOnDevice* rows, const Entry* entries, const float* logits, float* adjusted,
                 uint32_t vocabulary, SampleResult* results) {
  Shared* shared = shared_memory<Shared>();
  const RowOnDevice row = rows[blockIdx.x];
  const float* raw = logits + size_t{row.row} * vocabulary;
  float* values = adjusted + size_t{blockIdx.x} * vocabulary;
  const Tokens tokens{values, vocabulary};
  if (threadIdx.x == 0) shared->result = SampleResult();
  AdjustRow(row, entries, raw, values, vocabulary);
  uint32_t token = 0;
  if (row.given_token >= 0) {
    token = static_cast<uint32_t>(row.given_token);
  } else {
    const Word first = First(shared, tokens);
    if (first == 0) {
      token = LargestFinite(shared, raw, vocabulary);
    } else if (row.temperature == 0) {
      token = ~static_cast<uint32_t>(first);
    } else {
      token = Draw(shared, row, tokens, ValueOf(static_cast<uint32_t>(first >> 32)));
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) shared->result.token = token;
  __syncthreads();
  if (row.logprobs != 0) {
    for (uint32_t id = threadIdx.x; id < vocabulary; id += kThreads) values[id] = Orderly(raw[id]);
    __syncthreads();
    Logprobs(shared, row, tokens);
  }
  __syncthreads();
  if (threadIdx.x == 0) results[blockIdx.x] = shared->result;
}

// The rows, then their entries, into `staging`; returns the number of entries.
size_t Describe(absl::Span<const SampleRow> rows, RowOnDevice* described, Entry* entries) {
  uint32_t next = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& row = rows[i];
    RowOnDevice& out = described[i];
    out = {};
    out.row = static_cast<uint32_t>(row.row);
    out.given_token = static_cast<int32_t>(row.given_token);
    out.logprobs = row.logprobs ? 1 : 0;
    out.alternatives = row.alternatives;
    out.temperature = row.temperature;
    out.top_k = row.top_k;
    out.top_p = row.top_p;
    out.min_p = row.min_p;
    out.repetition_penalty = row.repetition_penalty;
    out.presence_penalty = row.presence_penalty;
    out.frequency_penalty = row.frequency_penalty;
    out.random = row.random;
    out.inverse_temperature = row.temperature > 0 ? 1.0 / static_cast<double>(row.temperature) : 0;
    out.inverse_repetition = 1.0 / static_cast<double>(row.repetition_penalty);
    out.bias_begin = next;
    for (const auto& [id, bias] : row.bias) {
      uint32_t bits;
      std::memcpy(&bits, &bias, sizeof(bits));
      entries[next++] = {id, bits};
    }
    out.suppressed_begin = next;
    for (const uint32_t id : row.suppressed) entries[next++] = {id, 0};
    out.seen_begin = next;
    for (const auto& [id, times] : row.seen) entries[next++] = {id, times};
    out.seen_end = next;
  }
  return next;
}

}  // namespace

size_t SampleBytes(size_t max_rows, size_t vocabulary) {
  return HeadBytes(max_rows) + kMaxSampleEntries * sizeof(Entry) + max_rows * vocabulary * sizeof(float);
}

size_t SampleStagingBytes(size_t max_rows) {
  return max_rows * sizeof(RowOnDevice) + kMaxSampleEntries * sizeof(Entry);
}

void Sample(const CudaQueue& queue, const SampleArgs& args) {
  if (args.rows.empty()) return;
  // In the buffer: results, rows, entries, adjusted logits.
  SampleResult* results = reinterpret_cast<SampleResult*>(args.buffer);
  RowOnDevice* rows = reinterpret_cast<RowOnDevice*>(results + args.max_rows);
  Entry* entries = reinterpret_cast<Entry*>(rows + args.max_rows);
  float* adjusted = reinterpret_cast<float*>(entries + kMaxSampleEntries);
  RowOnDevice* described = reinterpret_cast<RowOnDevice*>(args.staging);
  Entry* staged = reinterpret_cast<Entry*>(described + args.max_rows);
  const size_t count = Describe(args.rows, described, staged);
  const cudaStream_t stream = queue.stream();
  queue.Check(cudaMemcpyAsync(rows, described, args.max_rows * sizeof(RowOnDevice) + count * sizeof(Entry),
                              cudaMemcpyHostToDevice, stream),
              "copy of sampling options");
  const LaunchShape shape{dim3(static_cast<unsigned>(args.rows.size())), dim3(kThreads), sizeof(Shared)};
  queue.Check(Launch(SampleKernel, shape, stream, rows, entries, args.logits, adjusted,
                     static_cast<uint32_t>(args.vocabulary), results),
              "launch of sampling");
  queue.Check(cudaMemcpyAsync(args.results, results, args.rows.size() * sizeof(SampleResult),
                              cudaMemcpyDeviceToHost, stream),
              "copy of sampled tokens");
}

}  // namespace millrace::kernels::cuda
