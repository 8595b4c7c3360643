// Durations as protobuf knows them.
#pragma once

#include <google/protobuf/duration.pb.h>

#include "absl/time/time.h"

namespace millrace {

// Negative durations become 0: differences of times taken on several threads may be a little below it.
void SetDuration(absl::Duration from, google::protobuf::Duration* to);
// Of any message, whatever it holds; too much becomes infinite.
absl::Duration GetDuration(const google::protobuf::Duration& from);

}  // namespace millrace
