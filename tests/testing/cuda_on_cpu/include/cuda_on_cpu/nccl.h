// What tests control and see of the stand-in for NCCL.
//
// Ranks are streams of one process; all communicators are non-blocking. What NCCL leaves open is taken
// unkindly: a call is put on its stream only when the communicator has been polled a few times, an all-reduce
// adds in an order that differs from element to element, sends wait for their receivers. Misuse ends the
// process with a line that says what: an unknown communicator, counts that differ, one destroyed before it is
// finalized, which takes until no stream and no graph has work of it. What it cannot show: time, channels,
// transports, memory that NCCL takes.
#pragma once

#include <nccl.h>

#include <cstdint>
#include <string>

namespace cuda_on_cpu {

enum class NcclFault {
  kFailInit,      // joining fails, in the background
  kHangInit,      // joining never ends
  kFailAsync,     // as if the device had met an error
  kHangWork,      // what is on the stream does not begin until it is aborted
  kHangEnqueue,   // calls stay ncclInProgress
  kHangFinalize,  // likewise
  kHangAbort,     // ncclCommAbort does not return
};

// For ranks of that number in all communicators, present and future, until ClearNcclFaults. `after`: pieces
// of work on the stream (fused groups count once) that the rank does before the fault shows.
void SetNcclFault(NcclFault fault, int rank, uint64_t after = 0);
// Lets what hangs go on.
void ClearNcclFaults();

// For whole processes: the environment variable MILLRACE_NCCL_ON_CPU is such a list, for instance
// "hang-work=1@200,hang-abort=0": FAULT=RANK[@AFTER] with the names above. Returns false if it is not.
bool SetNcclFaults(const std::string& text);

// Communicators that were neither destroyed nor aborted.
int LiveNcclCommunicators();

}  // namespace cuda_on_cpu
