#include "common/transport/profile_messages.h"

#include <algorithm>

namespace millrace {
namespace {

void Append(const std::vector<ProfilePoint>& points,
            google::protobuf::RepeatedPtrField<v1::ProfilePoint>* wire) {
  for (const ProfilePoint& point : points) {
    v1::ProfilePoint* added = wire->Add();
    added->set_rows(point.rows);
    added->set_sequences(point.sequences);
    added->set_context(point.context);
    added->set_seconds(point.seconds);
  }
}

std::vector<ProfilePoint> Read(const google::protobuf::RepeatedPtrField<v1::ProfilePoint>& wire,
                               int max_points) {
  std::vector<ProfilePoint> points;
  const int count = std::min(wire.size(), max_points + 1);
  for (int i = 0; i < count; ++i) {
    points.push_back({wire[i].rows(), wire[i].sequences(), wire[i].context(), wire[i].seconds()});
  }
  return points;
}

}  // namespace

v1::Profile ToWire(const WorkerProfile& profile) {
  v1::Profile wire;
  wire.set_layer_elements(profile.layer_elements);
  wire.set_overhead_seconds(profile.overhead_seconds);
  Append(profile.layer, wire.mutable_layer());
  Append(profile.head, wire.mutable_head());
  return wire;
}

WorkerProfile FromWire(const v1::Profile& wire, int max_points) {
  WorkerProfile profile;
  profile.layer_elements = wire.layer_elements();
  profile.overhead_seconds = wire.overhead_seconds();
  profile.layer = Read(wire.layer(), max_points);
  profile.head = Read(wire.head(), max_points);
  return profile;
}

}  // namespace millrace
