// Between wire messages and the plain values of worker/stage. Every size is checked here.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/buffer_pool.h"
#include "common/hop_message.h"
#include "millrace/v1/cluster.pb.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_io.h"

namespace millrace {

// INVALID_ARGUMENT: no segments, more rows than `max_rows`, bias ids and values of different number. (What a
// stage must check about positions, blocks and options is CheckBatch's.)
absl::StatusOr<StageBatch> ToStageBatch(const v1::Plan& plan, uint32_t max_rows);

// Passes the activations on without a copy, or serializes the results into a buffer of `pool`.
HopMessage ToHopMessage(StageOutput output, BufferPool& pool);

}  // namespace millrace
