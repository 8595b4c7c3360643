#include "coordinator/frontend/proto_time.h"

#include <algorithm>

namespace millrace {

void SetDuration(absl::Duration from, google::protobuf::Duration* to) {
  absl::Duration rest = std::max(from, absl::ZeroDuration());
  to->set_seconds(absl::IDivDuration(rest, absl::Seconds(1), &rest));
  to->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
}

absl::Duration GetDuration(const google::protobuf::Duration& from) {
  return absl::Seconds(from.seconds()) + absl::Nanoseconds(from.nanos());
}

}  // namespace millrace
