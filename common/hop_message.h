// What travels over one hop of the ring, as a plain value; the bytes on the wire are in
// transport/hop_frame.h.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/buffer_pool.h"
#include "common/ids.h"

namespace millrace {

// When one stage handled a microbatch, in nanoseconds of that stage's own steady clock. Only differences
// within one stage mean anything.
struct StageStamp {
  int64_t received_ns = 0;  // plan and activations were both there
  int64_t started_ns = 0;   // computing began
  int64_t ended_ns = 0;     // computing ended
  int64_t sent_ns = 0;      // the output was handed to the link
  int64_t cpu_ns = 0;       // CPU time of the compute thread from started to ended; less than that: preempted
};

enum class HopKind : uint32_t {
  kActivations = 1,  // float32 [rows, hidden], from stage to stage
  kResult = 2,       // a serialized MicrobatchResult, from the last stage to the coordinator
};

struct HopMessage {
  HopKind kind = HopKind::kActivations;
  Epoch epoch;
  MicrobatchId microbatch;
  uint32_t rows = 0;
  std::vector<StageStamp> stamps;  // of stages 0, 1, ... so far
  std::shared_ptr<PooledBuffer> payload;
};

}  // namespace millrace
