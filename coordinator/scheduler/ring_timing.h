// What the stamps of returned microbatches say about the ring: how long a hop takes, how long the slowest
// stage computes, and from both how many microbatches keep the pipeline full.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/scheduler/cost_model.h"
#include "coordinator/scheduler/microbatch_plan.h"
#include "coordinator/scheduler/stage_cost.h"

namespace millrace {

// An exponentially weighted mean of what came last. One wild value moves it to at most four times itself;
// values that are negative or no numbers are ignored.
class SmoothedSeconds {
 public:
  SmoothedSeconds() = default;
  explicit SmoothedSeconds(double start) : value_(start) {}

  void Add(double seconds);
  bool known() const { return value_ > 0; }
  double value() const { return value_; }  // 0: unknown

 private:
  double value_ = 0;
  uint32_t count_ = 0;
};

// What of a microbatch its time on a stage depends on. A single row that is sampled counts as a decode; rows
// that prompt log probabilities are reported for pass through the output head as sampled ones do.
BatchFeatures FeaturesOf(const MicrobatchPlan& plan);

// Thread: engine. Values from workers may be anything: what cannot be is ignored.
class RingTiming {
 public:
  RingTiming() = default;
  // The priors are those of RingShape: `stage_costs` by stage or empty, `hop_seconds` or 0.
  RingTiming(uint32_t num_stages, std::vector<StageCost> stage_costs, double hop_seconds);

  // A microbatch was planned. Its predicted time stands for what has not been measured yet.
  void OnPlanned(const BatchFeatures& features);

  // A microbatch came back `elapsed` seconds after it was planned. `stages`: one for each, else nothing is
  // learnt.
  void OnReturned(const BatchFeatures& features, double elapsed, absl::Span<const StageTimes> stages);

  // m = max(p, ceil(p (t + c) / t)) for p stages, slowest stage t, mean hop c: with fewer in flight the
  // slowest stage waits for the first to come round again. One more than stages while t or c is unknown. At
  // most `cap`.
  //
  // `decodes`: all that runs, where that is decodes only; else empty. Then fewer, at least p, where a round
  // of all of them, max(m t, p (t + c)) with t for a share of 1 / m, is predicted to take less: each
  // microbatch reads the weights once, and few rows hardly take less time than some more. Several stages ask
  // for a clear gain.
  uint32_t Slots(uint32_t cap, const BatchFeatures& decodes) const;

  // What of a round is spent outside stages, over p; 0: unknown. Needs no offsets between clocks: times
  // within stages and of the whole round are each taken from one clock.
  double hop_seconds() const { return hop_.value(); }
  // One model a stage; none before anything is known.
  absl::Span<const StageCostModel> costs() const;
  double slowest_stage_seconds() const;  // of a typical microbatch; 0: unknown

 private:
  uint32_t FewerSlots(uint32_t full, const BatchFeatures& decodes) const;

  uint32_t num_stages_ = 1;
  std::vector<StageCostModel> models_;  // by stage
  std::vector<SmoothedSeconds> busy_;   // by stage
  SmoothedSeconds hop_;
  double planned_seconds_ = 0;  // predicted for the last plan, slowest stage
};

}  // namespace millrace
