// Profiles between processes.
#pragma once

#include "common/worker_profile.h"
#include "millrace/v1/profile.pb.h"

namespace millrace {

v1::Profile ToWire(const WorkerProfile& profile);

// As it came: whoever uses it checks it first (CheckProfile). Of each
// kind at most one point more than `max_points` is read, which is enough to see that there are too many.
WorkerProfile FromWire(const v1::Profile& wire, int max_points);

}  // namespace millrace
