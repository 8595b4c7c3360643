// How far a peer's clock is from ours, from exchanges of messages: the four times and the formulas of NTP
// (Mills, RFC 5905, section 8), and its clock filter: of the last exchanges the one that was under way for
// the shortest time, as queues only ever add to that, and to one direction more than to the other.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "absl/time/time.h"

namespace millrace {

// The peer asks, we answer. Nanoseconds of steady clocks, each with an origin of its own.
struct ClockExchange {
  int64_t asked_ns = 0;       // peer's clock
  int64_t received_ns = 0;    // our clock
  int64_t answered_ns = 0;    // our clock
  int64_t got_answer_ns = 0;  // peer's clock
};

// Pure arithmetic. Thread: the owner's.
class ClockOffsetEstimator {
 public:
  // The peer's times are not trusted. False, and nothing changes: times that cannot be (an answer before its
  // question, more time between our two than between the peer's two, a way of more than kLongestWay, times
  // outside of +-2^61 ns).
  bool Add(const ClockExchange& exchange);

  // The peer's clock minus ours; empty before the first exchange. Wrong by at most half of the time that the
  // best exchange was under way, plus what the clocks have drifted apart since.
  std::optional<absl::Duration> offset() const;

  static constexpr size_t kExchanges = 16;
  static constexpr absl::Duration kLongestWay = absl::Seconds(10);
  // An exchange counts as that much worse for its age: steady clocks of two machines drift apart by up to
  // some ten microseconds a second.
  static constexpr double kDriftPerSecond = 50e-6;

 private:
  struct Sample {
    int64_t at_ns = 0;  // our clock
    int64_t way_ns = 0;
    int64_t offset_ns = 0;
  };
  std::deque<Sample> samples_;
};

}  // namespace millrace
