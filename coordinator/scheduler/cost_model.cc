#include "coordinator/scheduler/cost_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace millrace {
namespace {

constexpr double kLeastSeconds = 1e-6;
constexpr double kLeastObserved = 1e-9;
constexpr double kMostSeconds = 3600;

// Variances of a term's factor, which may at first change by its own size, then drift by so much with each
// microbatch and more while observations are far off one after the other; and of a measurement, relative.
constexpr double kFirstVariance = 1;
constexpr double kMostVariance = 4;
constexpr double kDrift = 1e-6;
constexpr double kDriftAfterChange = 0.05;
constexpr double kNoise = 0.03 * 0.03;

constexpr double kUsualDecodes = 16;
constexpr double kUsualChunk = 64;
constexpr double kUsualContext = 512;

constexpr double kErrorSmoothing = 0.02;
constexpr double kLargestError = 10;
constexpr double kUsualErrorSmoothing = 0.05;
// Innovations beyond so many times the usual and what the fit is unsure of are cut.
constexpr double kOutlier = 3.0;
constexpr double kLeastOutlier = 0.1;
constexpr uint32_t kOutliersBelieved = 3;

}  // namespace

StageCostModel::StageCostModel(StageCost prior) : prior_(std::move(prior)), known_(true) {
  const auto at_least = [](double seconds, double least) { return std::max(seconds, std::max(least, 1e-9)); };
  const double row = at_least(prior_.Seconds(BatchFeatures::Decode(1)), 0);
  const double decodes = at_least(InterpolateCost(prior_.rows, kUsualDecodes), row);
  const double chunk = at_least(InterpolateCost(prior_.rows, kUsualChunk), row);
  scale_ = {row,
            decodes,
            chunk,
            at_least(prior_.decode_attention * kUsualDecodes * kUsualContext, decodes / 4),
            at_least(prior_.prefill_attention * kUsualChunk * kUsualContext, chunk / 4),
            at_least(InterpolateCost(prior_.sampled, kUsualDecodes), decodes / 4)};
  for (size_t i = 0; i < kTerms; ++i) covariance_[i][i] = kFirstVariance;
}

// The first observation of a stage without a prior.
void StageCostModel::Start(const BatchFeatures& features, double seconds) {
  const double decodes = seconds * kUsualDecodes / features.rows();
  const double chunk = seconds * kUsualChunk / features.rows();
  scale_ = {seconds, decodes, chunk, decodes, chunk, decodes};
  for (size_t i = 0; i < kTerms; ++i) covariance_[i][i] = kFirstVariance;
  learnt_[1] = 1;
  learnt_[2] = 1;
  known_ = true;
}

// In seconds, so that a usual amount of each makes its term about as much as it may cost.
StageCostModel::Vector StageCostModel::Terms(const BatchFeatures& f) const {
  return {scale_[0],
          scale_[1] * f.decode_rows * (1 / kUsualDecodes),
          scale_[2] * f.prefill_rows * (1 / kUsualChunk),
          scale_[3] * f.decode_attention * (1 / (kUsualDecodes * kUsualContext)),
          scale_[4] * f.prefill_attention * (1 / (kUsualChunk * kUsualContext)),
          scale_[5] * f.sampled_rows * (1 / kUsualDecodes)};
}

double StageCostModel::Unbounded(const BatchFeatures& features, const Vector& terms) const {
  double seconds = prior_.Seconds(features);
  for (size_t i = 0; i < kTerms; ++i) seconds += learnt_[i] * terms[i];
  return seconds;
}

double StageCostModel::Seconds(const BatchFeatures& features) const {
  return std::clamp(Unbounded(features, Terms(features)), kLeastSeconds, kMostSeconds);
}

double SlowestStageCost::operator()(const BatchFeatures& features) const {
  if (stages_.empty()) return features.rows();
  double slowest = 0;
  for (const StageCostModel& stage : stages_) slowest = std::max(slowest, stage.Seconds(features));
  return slowest;
}

std::optional<double> StageCostModel::error() const {
  return observed_ == 0 ? std::nullopt : std::optional<double>(error_);
}

void StageCostModel::Observe(const BatchFeatures& features, double seconds) {
  if (!(seconds >= kLeastObserved && seconds <= kMostSeconds) || features.rows() <= 0) return;
  if (known_) {
    const double error = std::abs(Seconds(features) - seconds) / seconds;
    observed_ = std::min(observed_ + 1, 1u << 20);
    error_ += std::max(kErrorSmoothing, 1.0 / observed_) * (std::min(error, kLargestError) - error_);
  } else {
    Start(features, seconds);
  }
  // Errors count in relation to the larger of the two: noise is the same for small and large microbatches,
  // and neither a wild prediction nor a wild observation weighs much.
  const Vector terms = Terms(features);
  const double prediction = Unbounded(features, terms);
  const double whole = std::max(prediction, seconds);
  Update(terms, 1 / whole, (seconds - prediction) / whole);
}

double StageCostModel::Bounded(double innovation, double uncertainty) {
  const double limit = std::max(kLeastOutlier, kOutlier * (usual_error_ + uncertainty));
  const bool outlier = std::abs(innovation) > limit;
  outliers_ = outlier ? outliers_ + 1 : 0;
  if (outlier && outliers_ < kOutliersBelieved) innovation = std::copysign(limit, innovation);
  outliers_ = std::min(outliers_, kOutliersBelieved);
  usual_error_ += kUsualErrorSmoothing * (std::min(std::abs(innovation), limit) - usual_error_);
  return innovation;
}

void StageCostModel::Update(const Vector& terms, double weight, double innovation) {
  Vector x{};
  for (size_t i = 0; i < kTerms; ++i) x[i] = terms[i] * weight;
  Vector px{};
  double variance = kNoise;  // of the innovation
  for (size_t i = 0; i < kTerms; ++i) {
    for (size_t j = 0; j < kTerms; ++j) px[i] += covariance_[i][j] * x[j];
    variance += px[i] * x[i];
  }
  innovation = Bounded(innovation, std::sqrt(std::max(0.0, variance - kNoise)));
  const double drift = outliers_ >= kOutliersBelieved ? kDriftAfterChange : kDrift;
  for (size_t i = 0; i < kTerms; ++i) {
    learnt_[i] += px[i] / variance * innovation;
    for (size_t j = 0; j <= i; ++j) {
      covariance_[i][j] -= px[i] * px[j] / variance;
      covariance_[j][i] = covariance_[i][j];
    }
    covariance_[i][i] = std::max(covariance_[i][i], 0.0) + drift;
    // What nothing excites is not forgotten further than this. A smaller diagonal alone could make the matrix
    // indefinite, so the row and column go with it.
    if (covariance_[i][i] <= kMostVariance) continue;
    for (size_t j = 0; j < kTerms; ++j) covariance_[i][j] = covariance_[j][i] = 0;
    covariance_[i][i] = kMostVariance;
  }
}

}  // namespace millrace
