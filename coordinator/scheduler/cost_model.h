// How long a stage will compute on a microbatch, learnt while it runs.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "absl/types/span.h"
#include "coordinator/scheduler/stage_cost.h"

namespace millrace {

// A prior plus a linear function of BatchFeatures, fitted online to what the prior leaves, by recursive least
// squares on relative errors. Hwang & Ahn ("Revisiting pipeline parallelism", OSDI 2026) fit such a model
// online for chunked prefill. Forgetting is by drift: factors are taken to walk at random (Ljung &
// Gunnarsson, "Adaptation and tracking in system identification", Automatica 1990), so that hours of nothing
// but decodes leave what is known of prefill as it was. An innovation far beyond the usual is cut, unless it
// is the third in a row: then the stage has changed.
//
// Without a prior, time is taken to be proportional to rows until more is known.
//
// Thread: engine. Cost: a prediction is tens of nanoseconds, an observation some hundred. Whatever is
// observed, predictions are finite and positive.
class StageCostModel {
 public:
  StageCostModel() = default;
  explicit StageCostModel(StageCost prior);

  // `seconds`: what the stage took. Not positive, not a number or beyond an hour: ignored.
  void Observe(const BatchFeatures& features, double seconds);

  // REQUIRES: known(). At least a microsecond, at most an hour.
  double Seconds(const BatchFeatures& features) const;

  // There is a prior or an observation.
  bool known() const { return known_; }

  // Exponentially weighted mean of |predicted - observed| / observed, each predicted before it was observed.
  // One counts as at most 10. nullopt: nothing was observed yet.
  std::optional<double> error() const;

 private:
  static constexpr size_t kTerms = 6;
  using Vector = std::array<double, kTerms>;

  Vector Terms(const BatchFeatures& features) const;
  double Unbounded(const BatchFeatures& features, const Vector& terms) const;
  void Start(const BatchFeatures& features, double seconds);
  void Update(const Vector& terms, double weight, double innovation);
  // `uncertainty`: how far the fit itself may be off, for what was hardly seen before.
  double Bounded(double innovation, double uncertainty);

  StageCost prior_;
  bool known_ = false;
  Vector scale_{};   // seconds, of a usual amount of each feature
  Vector learnt_{};  // by how much of its scale each term is wrong
  std::array<Vector, kTerms> covariance_{};
  double usual_error_ = 0.3;  // mean absolute innovation
  uint32_t outliers_ = 0;     // in a row
  double error_ = 0;
  uint32_t observed_ = 0;
};

// Time of a microbatch on the slowest of some stages. No models: its rows, so that budgets and shares are
// counts.
class SlowestStageCost {
 public:
  SlowestStageCost() = default;
  // REQUIRES: each is known, and outlives this.
  explicit SlowestStageCost(absl::Span<const StageCostModel> stages) : stages_(stages) {}

  double operator()(const BatchFeatures& features) const;

 private:
  absl::Span<const StageCostModel> stages_;
};

}  // namespace millrace
