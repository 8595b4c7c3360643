#include "coordinator/scheduler/stage_cost.h"

#include <algorithm>
#include <cstddef>

namespace millrace {

BatchFeatures& BatchFeatures::operator+=(const BatchFeatures& other) {
  decode_rows += other.decode_rows;
  prefill_rows += other.prefill_rows;
  decode_attention += other.decode_attention;
  prefill_attention += other.prefill_attention;
  sampled_rows += other.sampled_rows;
  return *this;
}

BatchFeatures BatchFeatures::Share(double parts) const {
  return {decode_rows / parts, prefill_rows / parts, decode_attention / parts, prefill_attention / parts,
          sampled_rows / parts};
}

BatchFeatures BatchFeatures::Decode(double context) {
  BatchFeatures features;
  features.decode_rows = 1;
  features.decode_attention = context;
  features.sampled_rows = 1;
  return features;
}

BatchFeatures BatchFeatures::Prefill(double first_position, double rows, bool sampled) {
  BatchFeatures features;
  features.prefill_rows = rows;
  features.prefill_attention = rows * first_position + rows * (rows + 1) / 2;
  features.sampled_rows = sampled ? 1 : 0;
  return features;
}

double InterpolateCost(const std::vector<CostPoint>& points, double x) {
  if (points.empty()) return 0;
  if (x <= points.front().x || points.size() == 1) return points.front().seconds;
  size_t right = 1;
  while (right + 1 < points.size() && points[right].x < x) ++right;
  const CostPoint& a = points[right - 1];
  const CostPoint& b = points[right];
  return std::max(0.0, a.seconds + (b.seconds - a.seconds) * (x - a.x) / (b.x - a.x));
}

double StageCost::Seconds(const BatchFeatures& features) const {
  double seconds = fixed + InterpolateCost(rows, features.rows());
  seconds += decode_attention * features.decode_attention + prefill_attention * features.prefill_attention;
  if (features.sampled_rows > 0) seconds += InterpolateCost(sampled, features.sampled_rows);
  return seconds;
}

}  // namespace millrace
