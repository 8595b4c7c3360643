// What goes into and comes out of a stage's compute thread.
#pragma once

#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "common/bounded_queue.h"
#include "common/generation.h"
#include "common/hop_message.h"
#include "worker/stage/stage_batch.h"

namespace millrace {

// A plan from the coordinator, or activations from the stage before, with the time it came (steady clock,
// ns).
struct StageInput {
  int64_t arrived_ns = 0;
  std::variant<StageBatch, HopMessage> content;
};
using StageInbox = BoundedQueue<StageInput>;

// What one microbatch gave: activations, or on the last stage results.
struct StageOutput {
  Epoch epoch;
  MicrobatchId microbatch;
  uint32_t rows = 0;
  std::vector<StageStamp> stamps;             // of all stages so far; this one's sent_ns is still 0
  std::shared_ptr<PooledBuffer> activations;  // [rows, hidden]; null on the last stage
  std::vector<SequenceResult> results;        // last stage
};

}  // namespace millrace
