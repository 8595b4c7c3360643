// The bytes of one HopMessage:
//
//   offset  size  field (little-endian)
//        0     4  magic "MRH1"
//        4     4  kind (HopKind)
//        8     8  epoch
//       16     8  microbatch id
//       24     4  rows
//       28     4  number of stamps
//       32     8  payload bytes
//       40    24  zero
//       64   40n  stamps: received, started, ended, sent, CPU time, 8 bytes each
//   64+40n        payload
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/buffer_pool.h"
#include "common/hop_message.h"
#include "grpcpp/support/byte_buffer.h"

namespace millrace {

// The largest message a receiver takes; anything else is refused before memory is taken for it.
struct HopLimits {
  uint32_t max_rows = 0;
  uint32_t max_stamps = 0;
  size_t max_payload_bytes = 0;
};

// Refers to the payload without copying it; the payload stays alive until gRPC has sent it.
grpc::ByteBuffer EncodeHopMessage(const HopMessage& message);

// One copy of the payload, into a buffer of `pool`. INVALID_ARGUMENT: not in the format, or past the limits.
absl::StatusOr<HopMessage> DecodeHopMessage(const grpc::ByteBuffer& bytes, const HopLimits& limits,
                                            BufferPool& pool);

}  // namespace millrace
