// Measures how fast this worker runs the model's layers and output head, before it holds any.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/worker_profile.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/device/device.h"
#include "worker/stage/stage_layout.h"

namespace millrace {

struct StageProfilerOptions {
  uint32_t max_rows = 0;        // of a microbatch: no point has more
  uint32_t context_tokens = 0;  // no position is beyond
  uint32_t block_tokens = 16;
  KvType kv_type = KvType::kF32;
  absl::Duration enough =
      absl::Milliseconds(800);              // repeat until so much was spent, at most kProfileRounds times
  absl::Duration limit = absl::Seconds(3);  // begin nothing that is likely to end later
  // What to measure with. Null: CPU time of the calling thread where that computes, otherwise the clock.
  std::function<int64_t()> nanos = nullptr;
};

// `enough` and `limit` where the profile is only a first guess, and somebody waits for it.
inline constexpr absl::Duration kBriefProfileEnough = absl::Milliseconds(50);
inline constexpr absl::Duration kBriefProfileLimit = absl::Milliseconds(150);

inline constexpr int kProfileRounds = 9;

// The part of the model that MeasureProfile reads.
StageLayout ProfiledLayout(const GgufFile& file, const HyperParameters& hyper_parameters);

// One transformer layer as decodes of 1, 2, 4, ... 128 rows at the start of their contexts and of a few rows
// further on, as prefill chunks at both places, and the output head: the median of up to kProfileRounds
// rounds each, in CPU time of the calling thread (shard 0), so that other processes do not make this worker
// slow. (Those that share its caches and memory while it measures do.) Shards run together, as they will.
//
// Points of many rows are left out when they would take too long. Each measurement runs another layer of the
// model, of as many as fill the caches, because a stage finds none of its weights in the cache either. They
// are loaded, and packed, as a stage loads them. Working memory is that of one microbatch of up to 128 rows,
// and up to 32 MiB of KV cache; it is gone when this returns.
//
// Thread: any, one that computes nothing else. INVALID_ARGUMENT: max_rows or context_tokens is 0, a bad block
// size, more devices (shards) than the model can be cut into. RESOURCE_EXHAUSTED: not enough memory.
absl::StatusOr<WorkerProfile> MeasureProfile(const GgufFile& file, const HyperParameters& hyper_parameters,
                                             DeviceGroup& devices, const StageProfilerOptions& options);

}  // namespace millrace
