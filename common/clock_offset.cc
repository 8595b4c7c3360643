#include "common/clock_offset.h"

#include <algorithm>

namespace millrace {
namespace {

constexpr int64_t kFarthestNs = int64_t{1} << 61;

bool InRange(int64_t ns) {
  return ns > -kFarthestNs && ns < kFarthestNs;
}

}  // namespace

bool ClockOffsetEstimator::Add(const ClockExchange& exchange) {
  const auto& [asked, received, answered, got_answer] = exchange;
  if (!InRange(asked) || !InRange(received) || !InRange(answered) || !InRange(got_answer)) return false;
  const int64_t held = answered - received;
  const int64_t way = got_answer - asked - held;
  if (held < 0 || got_answer < asked || way < 0 || way > absl::ToInt64Nanoseconds(kLongestWay)) return false;
  // The mean of (asked - received) and (got_answer - answered), without a sum that could overflow.
  const int64_t offset = asked - received + way / 2;
  samples_.push_back({answered, way, offset});
  if (samples_.size() > kExchanges) samples_.pop_front();
  return true;
}

std::optional<absl::Duration> ClockOffsetEstimator::offset() const {
  if (samples_.empty()) return std::nullopt;
  const int64_t now = samples_.back().at_ns;
  const auto error = [now](const Sample& sample) {
    return static_cast<double>(sample.way_ns) / 2 +
           (static_cast<double>(now) - static_cast<double>(sample.at_ns)) * kDriftPerSecond;
  };
  const auto best = std::min_element(samples_.begin(), samples_.end(),
                                     [&](const Sample& a, const Sample& b) { return error(a) < error(b); });
  return absl::Nanoseconds(best->offset_ns);
}

}  // namespace millrace
