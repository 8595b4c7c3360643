#include "coordinator/planner/stage_costs.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace millrace {
namespace {

constexpr double kMaxSeconds = 3600;
constexpr double kMaxElements = 1e13;
constexpr uint32_t kMaxRows = 1 << 16;
constexpr uint32_t kMaxContext = 1 << 24;
constexpr uint32_t kReferenceRows = 16;
constexpr double kReferenceContext = 256;

// False for what is no number, too.
bool Within(double value, double max) {
  return value >= 0 && value <= max;
}

absl::Status CheckPoints(const char* what, const std::vector<ProfilePoint>& points) {
  if (points.empty() || points.size() > kMaxProfilePoints) {
    return absl::InvalidArgumentError(absl::StrCat("profile: ", points.size(), " points of the ", what,
                                                   "; expected 1 to ", kMaxProfilePoints));
  }
  for (const ProfilePoint& point : points) {
    if (point.rows == 0 || point.rows > kMaxRows || point.sequences == 0 ||
        point.rows % point.sequences != 0 || point.context > kMaxContext ||
        !Within(point.seconds, kMaxSeconds)) {
      return absl::InvalidArgumentError(absl::StrCat("profile: a point of the ", what, " with ", point.rows,
                                                     " rows, ", point.sequences, " sequences, context ",
                                                     point.context, " and ", point.seconds, " s"));
    }
  }
  return absl::OkStatus();
}

bool IsDecode(const ProfilePoint& point) {
  return point.sequences == point.rows;
}

// Seconds of a layer for each position that a row attends to: the mean slope between points that differ in
// context only, weighted by what they attend to. `otherwise`: what to say if there is no such pair.
double AttentionSlope(const std::vector<ProfilePoint>& points, bool decode, double otherwise) {
  double seconds = 0;
  double positions = 0;
  for (const ProfilePoint& far : points) {
    // A single row is both; it counts as a decode.
    if (IsDecode(far) != decode) continue;
    for (const ProfilePoint& near : points) {
      if (near.rows != far.rows || near.sequences != far.sequences || near.context >= far.context) continue;
      seconds += far.seconds - near.seconds;
      positions += static_cast<double>(far.rows) * (far.context - near.context);
    }
  }
  return positions > 0 ? std::max(0.0, seconds / positions) : otherwise;
}

// One layer by rows, attention taken off: from decodes, or from chunks where no decode of so many rows was
// measured. Never falling, as more work is not less.
std::vector<CostPoint> RowCosts(const std::vector<ProfilePoint>& points, double decode_slope,
                                double prefill_slope) {
  std::map<uint32_t, const ProfilePoint*> chosen;
  for (const ProfilePoint& point : points) {
    const ProfilePoint*& best = chosen[point.rows];
    const bool better = best == nullptr || (IsDecode(point) && !IsDecode(*best)) ||
                        (IsDecode(point) == IsDecode(*best) && point.context < best->context);
    if (better) best = &point;
  }
  std::vector<CostPoint> costs;
  double floor = 0;
  for (const auto& [rows, point] : chosen) {
    const double chunk = static_cast<double>(rows) / point->sequences;
    const double attended = rows * (point->context + (chunk + 1) / 2);
    const double slope = IsDecode(*point) ? decode_slope : prefill_slope;
    // Attention at a short context is too small to be told from noise: never more than half of a point.
    floor = std::max(floor, point->seconds - std::min(point->seconds / 2, slope * attended));
    costs.push_back({static_cast<double>(rows), floor});
  }
  return costs;
}

}  // namespace

absl::Status CheckProfile(const WorkerProfile& profile) {
  if (!Within(profile.layer_elements, kMaxElements) || profile.layer_elements < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("profile: a layer of ", profile.layer_elements, " matrix elements"));
  }
  if (!Within(profile.overhead_seconds, kMaxSeconds)) {
    return absl::InvalidArgumentError(
        absl::StrCat("profile: an overhead of ", profile.overhead_seconds, " s"));
  }
  const absl::Status layer = CheckPoints("layer", profile.layer);
  return layer.ok() ? CheckPoints("output head", profile.head) : layer;
}

StageCost MakeStageCost(const WorkerProfile& profile, const ModelShape& shape, const LayerRange& layers) {
  const double decode_slope = AttentionSlope(profile.layer, true, 0);
  const double prefill_slope = AttentionSlope(profile.layer, false, decode_slope);
  const auto begin = shape.layer_elements.begin() + layers.first;
  const double elements = std::accumulate(begin, begin + layers.count, 0.0);
  StageCost cost;
  cost.fixed = profile.overhead_seconds;
  cost.rows = RowCosts(profile.layer, decode_slope, prefill_slope);
  for (CostPoint& point : cost.rows) point.seconds *= elements / profile.layer_elements;
  cost.decode_attention = decode_slope * layers.count;
  cost.prefill_attention = prefill_slope * layers.count;
  if (!shape.last(layers)) return cost;
  cost.sampled = RowCosts(profile.head, 0, 0);
  return cost;
}

WorkerProfile EstimateProfile(const DeviceSpeed& device, const ModelShape& shape) {
  const auto seconds = [&](double flops, double bytes) {
    return std::max(flops / device.flops_per_second, bytes / device.bytes_per_second);
  };
  const double layer_bytes = static_cast<double>(shape.layer_bytes.front());
  const double kv_bytes = static_cast<double>(shape.KvBytesPerToken(1));
  // Of a row and a position attended to: a product with the key, and one with the value, in every head.
  const double attention_flops = 4.0 * shape.num_heads * shape.head_size;
  const auto layer = [&](uint32_t rows, uint32_t sequences, uint32_t context) {
    const double chunk = static_cast<double>(rows) / sequences;
    const double attended = rows * (context + (chunk + 1) / 2);
    const double read = kv_bytes * sequences * (context + chunk);
    return ProfilePoint{rows, sequences, context,
                        seconds(2 * shape.layer_elements.front() * rows, layer_bytes) +
                            seconds(attention_flops * attended, read)};
  };
  WorkerProfile profile;
  profile.layer_elements = shape.layer_elements.front();
  profile.overhead_seconds = device.overhead_seconds;
  for (uint32_t rows = 1; rows <= 4096; rows *= 2) {
    profile.layer.push_back(layer(rows, rows, 0));
    profile.head.push_back(
        {rows, rows, 0, seconds(2 * shape.output_elements * rows, static_cast<double>(shape.output_bytes))});
  }
  for (const uint32_t context : {0u, 2048u}) profile.layer.push_back(layer(512, 1, context));
  profile.layer.push_back(layer(16, 16, 2048));
  return profile;
}

BatchFeatures ReferenceBatch() {
  BatchFeatures batch;
  for (uint32_t i = 0; i < kReferenceRows; ++i) batch += BatchFeatures::Decode(kReferenceContext);
  return batch;
}

BatchFeatures ReferenceBatch(const Workload& workload) {
  if (workload.prompt_tokens == 0) return ReferenceBatch();
  const double prompt = workload.prompt_tokens;
  const double output = workload.output_tokens;
  BatchFeatures batch;
  batch.decode_rows = kReferenceRows;
  batch.decode_attention = kReferenceRows * (prompt + output / 2);
  batch.prefill_rows = kReferenceRows * prompt / output;
  batch.prefill_attention = batch.prefill_rows * prompt / 2;
  // The prompt's last row gives the first token.
  batch.sampled_rows = kReferenceRows * (1 + 1 / output);
  return batch;
}

}  // namespace millrace
