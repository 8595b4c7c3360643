// Where the time of each stage goes: busy, or idle and why. The definitions, with their formulas and
// examples, are in docs/PIPELINE.md, "The bubble meter". Plain arithmetic on what the engine tells it: no
// I/O, no clock, no threads.
//
// Idle time of a stage is what lies between two of its microbatches, by its own clock only. Times of
// different processes are compared only to find the cause, through the estimated offsets of their clocks.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/histogram.h"
#include "common/hop_message.h"
#include "common/ids.h"

namespace millrace {

enum class IdleCause {
  kNoWork,              // no live sequence: not a bubble
  kBackPressured,       // handing the former output on
  kCommunication,       // the awaited microbatch was on its way
  kTooFewMicrobatches,  // too few live sequences to fill the pipeline
  kImbalance,           // another stage takes longer
  kStarved,             // the rest
};
inline constexpr size_t kNumIdleCauses = 6;
// "no_work", "back_pressured", ... as in metrics and traces.
const char* IdleCauseName(IdleCause cause);

struct IdleTime {
  std::array<absl::Duration, kNumIdleCauses> by_cause{};

  absl::Duration& operator[](IdleCause cause) { return by_cause[static_cast<size_t>(cause)]; }
  absl::Duration operator[](IdleCause cause) const { return by_cause[static_cast<size_t>(cause)]; }
  absl::Duration Total() const;
  absl::Duration Bubble() const { return Total() - (*this)[IdleCause::kNoWork]; }
  IdleTime& operator+=(const IdleTime& other);
};

// What one stage did over some time.
struct StageUse {
  absl::Duration busy;
  absl::Duration preempted;   // part of busy: the compute thread was not running
  absl::Duration on_the_way;  // sum over microbatches of the time of their way to the stage
  IdleTime idle;
  uint64_t microbatches = 0;
  uint64_t rows = 0;

  // Share of the time with work that the stage was idle: bubble / (bubble + busy); 0 before any.
  double BubbleRatio() const;
  StageUse& operator+=(const StageUse& other);
};

// What is known of a microbatch when it is planned.
struct PlannedMicrobatch {
  MicrobatchId id;
  absl::Time time;
  bool after_return = false;  // decided on the return of an earlier one, not on an arrival
  uint32_t in_flight = 0;     // this one included
  uint32_t live_sequences = 0;
  uint32_t rows = 0;
  uint32_t decode_rows = 0;
  uint32_t segments = 0;
};

// One microbatch on one stage; times on the coordinator's clock.
struct StageVisit {
  bool known = false;  // its stamps came
  absl::Time received, started, ended, sent;
  absl::Duration preempted;
  absl::Duration on_the_way;  // from the former stage, or from the coordinator
  IdleTime idle;              // just before `started`
};

struct MicrobatchAccount {
  PlannedMicrobatch planned;
  absl::Time returned;
  absl::Duration mean_hop;  // (planned to returned, less the time at the stages) / stages
  std::vector<StageVisit> visits;
};

// One meter serves one epoch. Thread: engine. Stamps come from workers and are not trusted: whatever they
// say, nothing gets negative, the causes add up to the idle time, and no time is longer than the
// coordinator's own clock allows.
class BubbleMeter {
 public:
  // REQUIRES: stages > 0.
  BubbleMeter(uint32_t stages, absl::Time now);

  // Clock of a stage minus the coordinator's, from now on. 0 until it is known.
  void SetClockOffset(uint32_t stage, absl::Duration offset);

  // From now on so many sequences are unfinished, running or waiting, and so many microbatches in flight.
  void OnLoad(absl::Time now, uint32_t live_sequences, uint32_t in_flight);

  void OnPlanned(const PlannedMicrobatch& planned);

  // The microbatch came back with the stamps of stages 0, 1, ... Null: it was not planned, or not the next.
  std::shared_ptr<const MicrobatchAccount> OnReturned(MicrobatchId id, absl::Span<const StageStamp> stamps,
                                                      absl::Time now);

  uint32_t stages() const { return static_cast<uint32_t>(stages_.size()); }
  // Since the epoch began.
  const StageUse& Total(uint32_t stage) const { return stages_[stage].total; }
  // Of the microbatches that came back in the last kWindow.
  std::vector<StageUse> Window(absl::Time now) const;
  static constexpr absl::Duration kWindow = absl::Seconds(10);

  // Microbatches in flight that fill the pipeline: max(p, ceil(p (t + c) / t)), with t the slowest stage's
  // time and c the mean hop, both smoothed.
  uint32_t NeededInFlight() const;
  absl::Duration mean_hop() const { return mean_hop_; }  // smoothed
  // The mean hop of each microbatch since the epoch began, in seconds.
  const Histogram& hops() const { return hops_; }

 private:
  enum class Work { kNone, kTooLittle, kEnough };
  // What the coordinator did since the former plan.
  struct WaitFacts {
    absl::Duration no_work;
    absl::Duration too_few;
  };
  struct InFlight {
    PlannedMicrobatch planned;
    WaitFacts waits;
    std::shared_ptr<const MicrobatchAccount> after;  // the return that led to it; null: an arrival
  };
  struct Stage {
    absl::Duration offset;
    StageUse total;
    // Of the former microbatch, on the stage's own clock since its epoch; unknown before the first.
    bool has_former = false;
    absl::Duration former_ended;
    absl::Duration former_sent;
    absl::Time former_planned;
    absl::Duration mean_busy;         // smoothed
    absl::Duration imbalance_credit;  // idle time that the dearest stage explains and no gap has used yet
  };
  struct Bucket {
    absl::Time start;
    std::vector<StageUse> use;
  };
  struct OwnTimes;

  void Accrue(absl::Time now);
  StageUse AddVisit(uint32_t index, const InFlight& flight, const StageStamp& stamp,
                    MicrobatchAccount& account);
  IdleTime SplitGap(uint32_t index, const InFlight& flight, const OwnTimes& own,
                    const MicrobatchAccount& account);
  absl::Duration Overlap(uint32_t index, const InFlight& flight, const MicrobatchAccount& account,
                         absl::Time from, absl::Time to) const;
  void Smooth(const MicrobatchAccount& account);
  std::vector<StageUse>& BucketOf(absl::Time now);

  std::vector<Stage> stages_;
  std::deque<InFlight> in_flight_;
  std::shared_ptr<const MicrobatchAccount> last_returned_;
  std::deque<Bucket> buckets_;
  absl::Duration mean_hop_;
  Histogram hops_{kHopBounds};
  uint64_t returned_ = 0;

  Work work_ = Work::kNone;
  absl::Time work_since_;
  WaitFacts waits_;
};

}  // namespace millrace
