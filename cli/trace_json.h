// A trace in the Trace Event Format, which Perfetto and chrome://tracing open: one track for the coordinator
// and one for each stage, microbatches as flows between them.
#pragma once

#include <string>
#include <vector>

#include "millrace/v1/control.pb.h"

namespace millrace::cli {

// JSON: {"traceEvents": [...]}. Events stand in the order of time, on each track slices do not overlap, and
// every flow has one start and one end. Times are microseconds; none is below 0.
std::string TraceJson(const v1::TraceBegin& begin, const std::vector<v1::TraceMicrobatch>& microbatches);

}  // namespace millrace::cli
