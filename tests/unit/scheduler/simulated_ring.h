// A ring of stages under a virtual clock. Each stage has a KV memory that remembers of every slot which token
// it holds, after which tokens and under which salt; every read checks it, so a block that is reused too
// early or shared wrongly, or a chunk that is out of order, shows. Whoever wrote it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/scheduler/microbatch_plan.h"
#include "coordinator/scheduler/scheduler.h"

namespace millrace::testing {

class SimulatedRing {
 public:
  // `random(n)` gives a number below n.
  SimulatedRing(const RingShape& shape, std::function<uint64_t(uint64_t)> random);

  // What a sequence is known to hold.
  struct Known {
    std::vector<TokenId> tokens;
    std::string salt;
  };

  // Stages take microbatches in the order they are sent. How long each takes goes with what is in it, and
  // with chance; stages differ, and some rings have slow stages or long hops. `known`: by segment.
  void Send(MicrobatchPlan plan, std::vector<Known> known, absl::Time now);

  absl::Time NextEventTime() const;  // InfiniteFuture if none
  // Runs one step of one stage, or brings a result back, at NextEventTime. An error names what a stage found
  // wrong.
  absl::Status Step();

  struct Result {
    MicrobatchId id;
    std::vector<SequenceResult> results;
    std::vector<StageTimes> stages;
  };
  // Results that came back, in order.
  std::vector<Result> TakeResults() { return std::exchange(results_, {}); }

 private:
  struct Slot {
    uint64_t microbatch = 0;  // that wrote it
    SequenceId writer;
    TokenId token = 0;
    uint64_t prefix = 0;  // hash of the salt and of all tokens up to it
  };
  struct Stage {
    std::vector<Slot> memory;
    absl::Time free_at = absl::InfinitePast();
    uint64_t last_run = 0;
    double fixed_us = 0;  // a microbatch; then each row, and each position that is attended to
    double row_us = 0;
    double position_us = 0;
  };
  struct Trip {
    MicrobatchPlan plan;
    std::vector<Known> known;
    std::vector<SequenceResult> results;
    std::vector<StageTimes> stages;
  };
  struct Event {
    size_t stage;  // the number of stages: the result comes back
    uint64_t microbatch;
  };

  absl::Status Run(size_t stage, Trip& trip);
  absl::Status ReadBack(Stage& stage, const Trip& trip, size_t index) const;
  Slot& SlotAt(Stage& stage, const PlanSegment& segment, uint32_t position) const;

  const RingShape shape_;
  const std::function<uint64_t(uint64_t)> random_;
  std::vector<Stage> stages_;
  absl::Time last_result_ = absl::InfinitePast();
  uint64_t jitter_us_ = 1;
  uint64_t hop_us_ = 1;
  std::map<uint64_t, Trip> trips_;
  std::multimap<absl::Time, Event> events_;
  std::vector<Result> results_;
};

}  // namespace millrace::testing
